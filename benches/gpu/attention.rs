//! Attention: batches in memory, measured, and compared with the processor's kernels.

use half::bf16;
use inflight::device::cpu::Cpu;
use inflight::device::cuda::CudaBuffer;
use inflight::device::memory::Buffer;
use inflight::kernels::cuda::{Attention, StepBuffer};
use inflight::kernels::tensor::Shape as Extent;
use inflight::kernels::{
    self, AttentionArgs, AttentionConfig, BatchView, DType, DeviceCache, DeviceScales,
    DeviceTensor, Fp8E4m3, KvCache, KvLayout, KvScales, StepArrays, StepLimits, TensorMut,
    TensorRef,
};
use inflight::{BlockId, Result};

use crate::common::Rng;
use crate::device::{Gpu, SCALE, numbers};
use crate::shape::{Limit, Shape};
use crate::table::{Row, Sample, Unit};

/// What bf16 results may differ by: outputs are at most 1, and rounded on both sides.
const BOUND: f32 = 0.016;

/// A step's arrays.
pub(crate) struct Tables {
    qo_indptr: Vec<u32>,
    kv_indptr: Vec<u32>,
    kv_indices: Vec<BlockId>,
    kv_last_page_len: Vec<u32>,
    block_size: usize,
    pub(crate) num_blocks: usize,
}

impl Tables {
    /// Blocks in random order.
    fn new(shape: &Shape) -> Self {
        let bs = shape.block_size;
        let blocks: usize = shape.rows.iter().map(|row| row.1.div_ceil(bs)).sum();
        let mut ids: Vec<u32> = (1..=blocks as u32).collect();
        let mut rng = Rng(11);
        for last in (1..ids.len()).rev() {
            ids.swap(last, (rng.next() % (last as u64 + 1)) as usize);
        }
        let (mut qo_indptr, mut kv_indptr) = (vec![0], vec![0]);
        let mut kv_last_page_len = Vec::new();
        for &(q, kv) in &shape.rows {
            qo_indptr.push(qo_indptr[qo_indptr.len() - 1] + q as u32);
            kv_indptr.push(kv_indptr[kv_indptr.len() - 1] + kv.div_ceil(bs) as u32);
            kv_last_page_len.push(((kv - 1) % bs + 1) as u32);
        }
        let kv_indices = ids.into_iter().map(BlockId).collect();
        let num_blocks = blocks + 1;
        Self { qo_indptr, kv_indptr, kv_indices, kv_last_page_len, block_size: bs, num_blocks }
    }

    fn view(&self) -> BatchView<'_> {
        BatchView {
            qo_indptr: &self.qo_indptr,
            kv_indptr: &self.kv_indptr,
            kv_indices: &self.kv_indices,
            kv_last_page_len: &self.kv_last_page_len,
            block_size: self.block_size,
        }
    }
}

fn config(shape: &Shape) -> AttentionConfig {
    let (heads, kv_heads) = shape.heads;
    AttentionConfig {
        kv_dtype: shape.kv,
        causal: shape.causal,
        ..AttentionConfig::new(heads, kv_heads, shape.dim, DType::Bf16)
    }
}

fn layout(shape: &Shape, tables: &Tables) -> KvLayout {
    KvLayout::nhd(shape.kv, tables.num_blocks, shape.block_size, shape.heads.1, shape.dim)
}

/// Planned and uploaded, with memory for queries and outputs.
struct Prepared {
    attention: Attention,
    step: StepBuffer,
    q: CudaBuffer,
    o: CudaBuffer,
    scale: CudaBuffer,
}

impl Prepared {
    fn new(gpu: &Gpu, shape: &Shape, tables: &Tables) -> Result<Self> {
        let limits = StepLimits {
            max_rows: shape.rows.len(),
            max_tokens: shape.tokens(),
            max_blocks: tables.kv_indices.len(),
            max_kv_len: shape.rows.iter().map(|row| row.1).max().unwrap_or(1),
            max_mask_bytes: 0,
        };
        let mut attention = Attention::new(&gpu.cuda, config(shape), limits)?;
        let mut step = StepBuffer::new(&gpu.cuda, limits, &[&attention])?;
        attention.plan(tables.view(), tables.num_blocks, None)?;
        let batch = tables.view();
        let arrays = StepArrays::new(batch);
        step.upload(&gpu.stream, &arrays, &[&attention])?;
        let len = shape.tokens() * shape.heads.0 * shape.dim;
        Ok(Self {
            attention,
            step,
            q: gpu.buffer(DType::Bf16, len)?,
            o: gpu.buffer(DType::Bf16, len)?,
            scale: gpu.upload(bytemuck::bytes_of(&SCALE))?,
        })
    }

    /// Arguments for a cache whose K and V begin at these addresses.
    fn args(&self, shape: &Shape, tables: &Tables, k: u64, v: u64) -> Result<AttentionArgs> {
        let extent = Extent::contiguous(shape.tokens(), shape.heads.0, shape.dim);
        let scale = self.scale.address();
        let scales = (shape.kv == DType::Fp8E4m3).then_some(DeviceScales {
            k: scale,
            v: scale,
            per_head: false,
        });
        // SAFETY: buffers are as large as the shape, and live until the stream is done.
        let tensor = |buffer: &CudaBuffer| unsafe {
            DeviceTensor::new(buffer.address(), DType::Bf16, extent)
        };
        // SAFETY: as above.
        let cache = unsafe { DeviceCache::new(k, v, layout(shape, tables), scales) }?;
        Ok(AttentionArgs::new(tensor(&self.q), cache, tensor(&self.o)))
    }
}

/// Measures a shape; `None`, and a line that says why, where it does not fit.
pub(crate) fn measure(gpu: &mut Gpu, cpu: &Cpu, shape: &Shape) -> Result<Option<Row>> {
    let error = check(gpu, cpu, &shape.small())?;
    let tables = Tables::new(shape);
    let half = layout(shape, &tables).k_extent()? * shape.kv.size();
    let bytes = (2 * half.next_multiple_of(256)).max(256);
    let copies = gpu.copies(bytes);
    if copies == 0 {
        println!("{:<52} skipped: its cache is {} MiB", shape.name, bytes >> 20);
        return Ok(None);
    }
    gpu.fill_arena(shape.kv)?;
    let prepared = Prepared::new(gpu, shape, &tables)?;
    let arena = gpu.arena.address();
    let of_copy = |copy: usize| {
        let k = arena + (copy * bytes) as u64;
        prepared.args(shape, &tables, k, k + (bytes / 2) as u64)
    };
    // Two calls at least: one has the clock's steps in it.
    let calls: Vec<_> = (0..copies.max(2)).map(|n| of_copy(n % copies)).collect::<Result<_>>()?;
    let Prepared { attention, step, .. } = &prepared;
    let queue = |stream: &_| {
        // SAFETY: all memory lives until the stream is done, and it is in no other use.
        calls.iter().try_for_each(|args| unsafe { attention.run(stream, step, 0, args) })
    };
    let mut graph = gpu.stream.capture(queue)?;
    let visible = shape.kv_bytes() & !0xf;
    let mut samples = Vec::new();
    // One more than asked for: the first finds a sleeping GPU.
    for round in 0..=gpu.rounds {
        let mut limits = Vec::new();
        for limit in shape.limits {
            limits.push(match limit {
                Limit::Read => ("read", Unit::Bytes, read(gpu, visible, bytes, copies)?),
                Limit::Mma => ("mma", Unit::Operations, mma(gpu)?),
            });
        }
        let seconds = gpu.time(queue)? / calls.len() as f64;
        // SAFETY: what was captured uses memory that lives, and it is in no other use.
        let in_graph = gpu.time(|stream| unsafe { graph.launch(stream) })? / calls.len() as f64;
        if round > 0 || gpu.smoke {
            samples.push(Sample { seconds, in_graph: Some(in_graph), limits });
        }
    }
    gpu.stream.synchronize()?;
    let (bytes, operations) = (shape.bytes() as f64, shape.operations());
    let tokens = shape.tokens();
    Ok(Some(Row { name: shape.name.clone(), bytes, operations, tokens, error, samples }))
}

/// Bytes a second of reading the same bytes from as many places.
pub(crate) fn read(gpu: &Gpu, bytes: usize, apart: usize, copies: usize) -> Result<f64> {
    let calls = copies.max(2);
    let seconds = gpu.time(|stream| {
        (0..calls).try_for_each(|n| {
            let from = gpu.arena.address() + (n % copies * apart) as u64;
            gpu.ceilings.read(stream, from, bytes)
        })
    })?;
    Ok((bytes * calls) as f64 / seconds)
}

/// Operations a second of `mma.sync`.
pub(crate) fn mma(gpu: &Gpu) -> Result<f64> {
    let mut operations = 0.0;
    let seconds = gpu.time(|stream| {
        operations = gpu.ceilings.mma(stream)?;
        Ok(())
    })?;
    Ok(operations / seconds)
}

/// The largest difference to the processor's result.
fn check(gpu: &Gpu, cpu: &Cpu, shape: &Shape) -> Result<f64> {
    let tables = Tables::new(shape);
    let layout = layout(shape, &tables);
    let elements = layout.k_extent()?;
    let mut rng = Rng(3);
    let mut host = Vec::new();
    for _ in 0..2 {
        let mut memory = Buffer::zeroed(elements * shape.kv.size())?;
        let filled = numbers(shape.kv, elements, &mut rng);
        memory[..filled.len()].copy_from_slice(&filled);
        host.push(memory);
    }
    let prepared = Prepared::new(gpu, shape, &tables)?;
    let on_device: Vec<_> = host
        .iter()
        .map(|memory| gpu.upload(&memory[..elements * shape.kv.size()]))
        .collect::<Result<_>>()?;
    let args = prepared.args(shape, &tables, on_device[0].address(), on_device[1].address())?;
    // SAFETY: all memory lives until the stream is done, and it is in no other use.
    unsafe { prepared.attention.run(&gpu.stream, &prepared.step, 0, &args) }?;
    let len = shape.tokens() * shape.heads.0 * shape.dim;
    let (mut q, mut found) = (vec![bf16::ZERO; len], vec![bf16::ZERO; len]);
    gpu.stream.read(bytemuck::cast_slice_mut(&mut q), &prepared.q, 0)?;
    gpu.stream.read(bytemuck::cast_slice_mut(&mut found), &prepared.o, 0)?;

    let [k, v] = &mut host[..] else { unreachable!("two were made") };
    let bytes = elements * shape.kv.size();
    let cache = match shape.kv {
        DType::Fp8E4m3 => {
            let k: &mut [Fp8E4m3] = bytemuck::cast_slice_mut(&mut k[..bytes]);
            KvCache::new(k, bytemuck::cast_slice_mut(&mut v[..bytes]), layout)?
        }
        _ => {
            let k: &mut [bf16] = bytemuck::cast_slice_mut(&mut k[..bytes]);
            KvCache::new(k, bytemuck::cast_slice_mut(&mut v[..bytes]), layout)?
        }
    };
    let scales = match shape.kv {
        DType::Fp8E4m3 => KvScales { k: &[SCALE], v: &[SCALE] },
        _ => KvScales::NONE,
    };
    let limits = StepLimits::MAX;
    let mut attention = kernels::cpu::Attention::new(cpu, config(shape), limits)?;
    let mut step = kernels::cpu::StepBuffer::new(limits, &[&attention])?;
    attention.plan(tables.view(), tables.num_blocks, None)?;
    step.upload(&StepArrays::new(tables.view()), &[&attention])?;
    let extent = Extent::contiguous(shape.tokens(), shape.heads.0, shape.dim);
    let mut o = vec![bf16::ZERO; len];
    attention.run(
        &step,
        0,
        kernels::cpu::AttentionArgs {
            q: TensorRef::new(&q, extent)?,
            cache: &cache,
            scales,
            o: TensorMut::new(&mut o, extent)?,
            lse: None,
            alibi_slopes: None,
            sinks: None,
        },
    )?;
    let differ = |(x, y): (&bf16, &bf16)| (x.to_f32() - y.to_f32()).abs();
    let worst = found
        .iter()
        .zip(&o)
        .map(differ)
        .fold(0.0, |worst: f32, x| if x.is_nan() { f32::INFINITY } else { worst.max(x) });
    if worst > BOUND {
        let reason = format!("{}: {worst} from the processor's result", shape.name);
        return Err(inflight::Error::Device(reason));
    }
    Ok(f64::from(worst))
}
