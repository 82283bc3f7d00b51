//! Memory, and batches over it.

use std::time::Instant;

use half::{bf16, f16};
use inflight::device::cpu::{Cpu, CpuConfig, Isa};
use inflight::device::memory::Buffer;
use inflight::kernels::cpu::{Attention, AttentionArgs, StepBuffer};
use inflight::kernels::tensor::Shape;
use inflight::kernels::{
    AttentionConfig, BatchView, DType, KvCache, KvLayout, KvScales, StepArrays, StepLimits,
    TensorMut, TensorRef,
};
use inflight::{BlockId, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::common::Rng;
use crate::peak::{Gemm, Sgemm};
use crate::read::{Method, methods};
use crate::table::median;

/// Seconds.
pub(crate) fn time(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// Numbers below 2 whatever the type they are read as, fp8 included: no NaN, no infinity.
pub(crate) fn fill(data: &mut [u8], seed: u64) {
    let mut rng = Rng(seed);
    for word in data.as_chunks_mut::<8>().0 {
        *word = ((rng.next() & 0x83bf_83bf_83bf_83bf) | 0x3c00_3c00_3c00_3c00).to_ne_bytes();
    }
}

/// K and V of a layer, of any type and shape.
pub(crate) struct Arena {
    pub(crate) k: Buffer,
    pub(crate) v: Buffer,
}

impl Arena {
    fn new(bytes: usize, seed: u64) -> Result<Self> {
        let (mut k, mut v) = (Buffer::zeroed(bytes)?, Buffer::zeroed(bytes)?);
        fill(&mut k, seed);
        fill(&mut v, seed + 1);
        Ok(Self { k, v })
    }

    /// A layout that uses all of it.
    pub(crate) fn layout(&self, shape: &CacheShape) -> KvLayout {
        let CacheShape { dtype, hnd, block_size, heads, head_dim } = *shape;
        let blocks = self.k.len() / (block_size * heads * head_dim * dtype.size());
        let make = if hnd { KvLayout::hnd } else { KvLayout::nhd };
        make(dtype, blocks, block_size, heads, head_dim)
    }

    pub(crate) fn cache(&mut self, layout: KvLayout) -> Result<KvCache<'_>> {
        KvCache::new(&mut self.k[..], &mut self.v[..], layout)
    }
}

/// One layer's cache.
#[derive(Clone, Copy)]
pub(crate) struct CacheShape {
    pub(crate) dtype: DType,
    pub(crate) hnd: bool,
    pub(crate) block_size: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
}

/// Threads for the kernels, and as many for the limits.
pub(crate) struct Side {
    pub(crate) cpu: Cpu,
    pub(crate) pool: ThreadPool,
}

impl Side {
    fn new(threads: Option<usize>, isa: Option<Isa>) -> Result<Self> {
        let cpu = Cpu::new(&CpuConfig { threads, cores: None, isa })?;
        let pool = ThreadPoolBuilder::new().num_threads(cpu.threads()).build();
        Ok(Self { cpu, pool: pool.expect("threads can be started") })
    }
}

/// Everything that cases share.
pub(crate) struct Bench {
    /// What attention reads, and the limit of reading.
    pub(crate) arena: Arena,
    /// What appends and copies write.
    pub(crate) target: Arena,
    pub(crate) all: Side,
    pub(crate) one: Side,
    pub(crate) gemm: Gemm,
    pub(crate) methods: Vec<Method>,
    /// The best of them.
    pub(crate) best: usize,
}

/// What is read to find the limit: far beyond any cache.
pub(crate) const READ: usize = 512 << 20;
/// 32 rows of 4,096 f32 keys of 8 heads of 128, and their last blocks.
const ARENA: usize = 544 << 20;
const TARGET: usize = 256 << 20;

impl Bench {
    pub(crate) fn new(
        threads: Option<usize>,
        isa: Option<Isa>,
        blas: Option<Sgemm>,
    ) -> Result<Self> {
        let mut bench = Self {
            arena: Arena::new(ARENA, 1)?,
            target: Arena::new(TARGET, 3)?,
            all: Side::new(threads, isa)?,
            one: Side::new(Some(1), isa)?,
            gemm: Gemm::new(2048, blas),
            methods: methods(),
            best: 0,
        };
        let mut best = 0.0;
        for method in 0..bench.methods.len() {
            let rates = [(); 5].map(|()| bench.read_with(method, false));
            if median(&rates) > best {
                (best, bench.best) = (median(&rates), method);
            }
        }
        Ok(bench)
    }

    pub(crate) fn side(&self, one: bool) -> &Side {
        if one { &self.one } else { &self.all }
    }

    /// GB/s of a method.
    pub(crate) fn read_with(&self, method: usize, one: bool) -> f64 {
        let (method, data) = (&self.methods[method], &self.arena.k[..READ]);
        let spent = time(|| {
            std::hint::black_box(method.read(&self.side(one).pool, data));
        });
        READ as f64 / spent / 1e9
    }

    /// GB/s of the best method.
    pub(crate) fn read(&self) -> f64 {
        self.read_with(self.best, false)
    }

    /// GFLOP/s.
    pub(crate) fn gemm(&mut self, one: bool) -> f64 {
        let side = if one { &self.one } else { &self.all };
        self.gemm.run(&side.pool)
    }
}

/// What an attention case computes.
#[derive(Clone)]
pub(crate) struct Spec {
    pub(crate) q_heads: usize,
    pub(crate) q_dtype: DType,
    pub(crate) cache: CacheShape,
    /// Queries and keys of each row.
    pub(crate) rows: Vec<(u32, u32)>,
}

impl Spec {
    /// 32 query heads, 8 KV heads, d 128, blocks of 16, NHD.
    pub(crate) fn new(dtype: DType, rows: Vec<(u32, u32)>) -> Self {
        let q_dtype = if dtype == DType::Fp8E4m3 { DType::Bf16 } else { dtype };
        let cache = CacheShape { dtype, hnd: false, block_size: 16, heads: 8, head_dim: 128 };
        Self { q_heads: 32, q_dtype, cache, rows }
    }

    pub(crate) fn tokens(&self) -> usize {
        self.rows.iter().map(|&(q, _)| q as usize).sum()
    }

    /// Bytes of K and V that are seen.
    pub(crate) fn kv_bytes(&self) -> usize {
        let keys: usize = self.rows.iter().map(|&(_, keys)| keys as usize).sum();
        2 * keys * self.cache.heads * self.cache.head_dim * self.cache.dtype.size()
    }

    /// Multiplications and additions of both products, of visible keys only.
    pub(crate) fn flops(&self) -> f64 {
        let seen = self.rows.iter().map(|&(q, keys)| {
            let (q, keys) = (f64::from(q), f64::from(keys));
            q * keys - q * (q - 1.0) / 2.0
        });
        4.0 * self.cache.head_dim as f64 * self.q_heads as f64 * seen.sum::<f64>()
    }
}

/// Lognormal lengths (sigma 0.8), the same in every run, of this mean exactly.
pub(crate) fn lengths(rows: usize, mean: u32) -> Vec<u32> {
    let mut rng = Rng(7);
    let raw: Vec<u32> = (0..rows).map(|_| rng.lognormal(1000.0, 0.8)).collect();
    let sum: u32 = raw.iter().sum();
    let total = mean * rows as u32;
    let scale = f64::from(total) / f64::from(sum);
    let mut lengths: Vec<u32> = raw.iter().map(|&n| (f64::from(n) * scale) as u32).collect();
    lengths[0] += total - lengths.iter().sum::<u32>();
    lengths
}

/// The numbers below `n` in a random order, the same in every run.
pub(crate) fn shuffled(n: usize) -> Vec<u32> {
    let mut rng = Rng(11);
    let mut numbers: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        numbers.swap(i, (rng.next() % (i as u64 + 1)) as usize);
    }
    numbers
}

/// Rows of one query each.
pub(crate) fn decode(lengths: Vec<u32>) -> Vec<(u32, u32)> {
    lengths.into_iter().map(|keys| (1, keys)).collect()
}

/// A batch over several sets of blocks, so that one run does not find in the processor's caches
/// what the one before it has read.
pub(crate) struct Load {
    pub(crate) spec: Spec,
    layout: KvLayout,
    /// On all threads, and on one.
    attentions: [(Attention, StepBuffer); 2],
    qo_indptr: Vec<u32>,
    kv_indptr: Vec<u32>,
    last: Vec<u32>,
    /// Block tables.
    sets: Vec<Vec<BlockId>>,
    next: usize,
    q: Vec<u64>,
    o: Vec<u64>,
}

/// Sets of blocks are as many as make this, memory permitting.
const CYCLE: usize = 384 << 20;

impl Load {
    pub(crate) fn new(bench: &Bench, spec: Spec) -> Result<Self> {
        let CacheShape { dtype, block_size, heads, head_dim, .. } = spec.cache;
        let mut config = AttentionConfig::new(spec.q_heads, heads, head_dim, spec.q_dtype);
        config.kv_dtype = dtype;
        let layout = bench.arena.layout(&spec.cache);
        let (mut qo_indptr, mut kv_indptr, mut last) = (vec![0], vec![0], Vec::new());
        for &(q, keys) in &spec.rows {
            qo_indptr.push(qo_indptr[qo_indptr.len() - 1] + q);
            let blocks = keys.div_ceil(block_size as u32);
            kv_indptr.push(kv_indptr[kv_indptr.len() - 1] + blocks);
            last.push(if blocks == 0 { 0 } else { keys - (blocks - 1) * block_size as u32 });
        }
        let blocks: Vec<BlockId> = shuffled(layout.num_blocks).into_iter().map(BlockId).collect();
        let used = kv_indptr[spec.rows.len()] as usize;
        let wanted = CYCLE.div_ceil(spec.kv_bytes());
        let sets = blocks.chunks_exact(used).take(wanted);
        let sets: Vec<Vec<BlockId>> = sets.map(<[BlockId]>::to_vec).collect();
        assert!(!sets.is_empty(), "the arena does not hold {used} blocks");
        let on = |cpu: &Cpu| {
            let attention = Attention::new(cpu, config, StepLimits::MAX)?;
            let step = StepBuffer::new(StepLimits::MAX, &[&attention])?;
            Ok::<_, inflight::Error>((attention, step))
        };
        let words = spec.tokens() * spec.q_heads * head_dim * spec.q_dtype.size() / 8;
        let mut q = vec![0; words];
        fill(bytemuck::cast_slice_mut(&mut q), 5);
        Ok(Self {
            spec,
            layout,
            attentions: [on(&bench.all.cpu)?, on(&bench.one.cpu)?],
            qo_indptr,
            kv_indptr,
            last,
            sets,
            next: 0,
            q,
            o: vec![0; words],
        })
    }

    /// Bytes of K and V before any is read again.
    pub(crate) fn cycle(&self) -> usize {
        self.sets.len() * self.spec.kv_bytes()
    }

    /// Plans for the next set of blocks, and uploads; seconds.
    pub(crate) fn plan(&mut self, one: bool) -> Result<f64> {
        self.next = (self.next + 1) % self.sets.len();
        let batch = BatchView {
            qo_indptr: &self.qo_indptr,
            kv_indptr: &self.kv_indptr,
            kv_indices: &self.sets[self.next],
            kv_last_page_len: &self.last,
            block_size: self.spec.cache.block_size,
        };
        let start = Instant::now();
        let (attention, step) = &mut self.attentions[usize::from(one)];
        attention.plan(batch, self.layout.num_blocks, None)?;
        step.upload(&StepArrays::new(batch), &[attention])?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Seconds a run, planning apart, on all threads or one; as many runs as take `least` seconds
    /// together.
    pub(crate) fn run(&mut self, one: bool, arena: &mut Arena, least: f64) -> Result<f64> {
        let cache = arena.cache(self.layout)?;
        let fp8 = self.spec.cache.dtype == DType::Fp8E4m3;
        let scales = if fp8 { KvScales { k: &[0.5], v: &[0.5] } } else { KvScales::NONE };
        let Spec { q_heads, q_dtype, cache: CacheShape { head_dim, .. }, .. } = self.spec;
        let shape = Shape::contiguous(self.spec.tokens(), q_heads, head_dim);
        let (mut spent, mut runs) = (0.0, 0);
        while spent < least && runs < 256 {
            self.plan(one)?;
            let args = AttentionArgs {
                q: tensor(&self.q, q_dtype, shape)?,
                cache: &cache,
                scales,
                o: tensor_mut(&mut self.o, q_dtype, shape)?,
                lse: None,
                alibi_slopes: None,
                sinks: None,
            };
            let start = Instant::now();
            let (attention, step) = &self.attentions[usize::from(one)];
            attention.run(step, 0, args)?;
            spent += start.elapsed().as_secs_f64();
            runs += 1;
        }
        std::hint::black_box(&self.o);
        Ok(spent / f64::from(runs))
    }
}

/// A tensor of some type over plain memory.
pub(crate) fn tensor(data: &[u64], dtype: DType, shape: Shape) -> Result<TensorRef<'_>> {
    match dtype {
        DType::F32 => TensorRef::new(bytemuck::cast_slice::<u64, f32>(data), shape),
        DType::F16 => TensorRef::new(bytemuck::cast_slice::<u64, f16>(data), shape),
        _ => TensorRef::new(bytemuck::cast_slice::<u64, bf16>(data), shape),
    }
}

/// The same, to write.
pub(crate) fn tensor_mut(data: &mut [u64], dtype: DType, shape: Shape) -> Result<TensorMut<'_>> {
    match dtype {
        DType::F32 => TensorMut::new(bytemuck::cast_slice_mut::<u64, f32>(data), shape),
        DType::F16 => TensorMut::new(bytemuck::cast_slice_mut::<u64, f16>(data), shape),
        _ => TensorMut::new(bytemuck::cast_slice_mut::<u64, bf16>(data), shape),
    }
}
