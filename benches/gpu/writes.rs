//! Appends, merges and block moves, measured against copying as many bytes.

use half::bf16;
use inflight::cache::BlockOp;
use inflight::device::cpu::Cpu;
use inflight::device::cuda::{CudaBuffer, CudaStream, PinnedBuffer};
use inflight::kernels::cuda::{Append, BlockMover, Merge, StepBuffer};
use inflight::kernels::rope::{RopeConfig, RopePairs};
use inflight::kernels::tensor::Shape as Extent;
use inflight::kernels::{
    AppendArgs, BatchView, DType, DeviceCache, DeviceScales, DeviceTensor, Fp8E4m3, KvCache,
    KvLayout, KvScales, Rope, State, StepArrays, StepLimits, TensorMut, TensorRef, cpu,
};
use inflight::{Error, Result};

use crate::common::Rng;
use crate::device::{Gpu, SCALE};
use crate::table::{Row, Sample, Unit};

const HEADS: (usize, usize) = (32, 8);
const DIM: usize = 128;
const BLOCK: usize = 16;

type Measure = Box<dyn Fn(&mut Gpu, &Cpu) -> Result<Option<Row>>>;

/// Cases by name.
pub(crate) fn all(smoke: bool) -> Vec<(String, Measure)> {
    let mut cases: Vec<(String, Measure)> = Vec::new();
    let counts: &[usize] = if smoke { &[5] } else { &[128, 2048, 8192] };
    for &tokens in counts {
        for cache in [DType::Bf16, DType::Fp8E4m3] {
            for rotated in [false, true] {
                let rope = if rotated { " rope of q and k" } else { "" };
                let name = format!("append t{tokens} 32/8 d128 {}{rope}", cache.name());
                let measure = {
                    let name = name.clone();
                    move |gpu: &mut Gpu, cpu: &Cpu| append(gpu, cpu, &name, tokens, cache, rotated)
                };
                cases.push((name, Box::new(measure)));
            }
        }
    }
    let layers = if smoke { 2 } else { 32 };
    for kind in [BlockOp::COPY, BlockOp::SWAP_OUT, BlockOp::SWAP_IN] {
        let what = ["copy_blocks", "swap out", "swap in"][kind as usize];
        let ops = if smoke { 3 } else { 64 };
        let name = format!("{what} {ops} blocks of 16 of {layers} layers 8 d128 bf16");
        let measure = {
            let name = name.clone();
            move |gpu: &mut Gpu, _: &Cpu| moves(gpu, &name, kind, ops, layers)
        };
        cases.push((name, Box::new(measure)));
    }
    for states in [2, 8] {
        let tokens = if smoke { 3 } else { 2048 };
        let name = format!("merge {states} states t{tokens} h32 d128 bf16");
        let measure = {
            let name = name.clone();
            move |gpu: &mut Gpu, _: &Cpu| merge(gpu, &name, states, tokens)
        };
        cases.push((name, Box::new(measure)));
    }
    cases
}

/// Samples of work that moves `bytes` in each of `calls`, each against a copy of as many.
fn sample(
    gpu: &Gpu,
    bytes: usize,
    calls: usize,
    mut work: impl FnMut(&CudaStream) -> Result<()>,
) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    // Half of them are read, half written.
    let len = ((bytes / 2) & !0xf).clamp(16, (gpu.arena.len() / 2) & !0xff);
    let places = (gpu.arena.len() / 2 / len.next_multiple_of(256)).clamp(1, calls);
    let (from, to) =
        (gpu.arena.address(), gpu.arena.address() + ((gpu.arena.len() / 2) & !0xff) as u64);
    for round in 0..=gpu.rounds {
        let seconds = gpu.time(|stream| {
            (0..calls).try_for_each(|n| {
                let at = (n % places * len.next_multiple_of(256)) as u64;
                gpu.ceilings.copy(stream, (to + at, from + at), len)
            })
        })?;
        let limits = vec![("copy", Unit::Bytes, (2 * len * calls) as f64 / seconds)];
        let seconds = gpu.time(&mut work)? / calls as f64;
        if round > 0 || gpu.smoke {
            samples.push(Sample { seconds, in_graph: None, limits });
        }
    }
    gpu.stream.synchronize()?;
    Ok(samples)
}

fn tensor(buffer: &CudaBuffer, extent: Extent) -> DeviceTensor {
    // SAFETY: the buffer is as large as the shape, and lives until the stream is done.
    unsafe { DeviceTensor::new(buffer.address(), DType::Bf16, extent) }
}

fn append(
    gpu: &mut Gpu,
    processor: &Cpu,
    name: &str,
    tokens: usize,
    dtype: DType,
    rotated: bool,
) -> Result<Option<Row>> {
    let (heads, kv_heads) = HEADS;
    let blocks = tokens.div_ceil(BLOCK) * 4;
    let layout = KvLayout::nhd(dtype, blocks, BLOCK, kv_heads, DIM);
    let half = layout.k_extent()? * dtype.size();
    let copies = gpu.copies(2 * half);
    if copies == 0 {
        println!("{name:<52} skipped: its cache is {} MiB", half >> 19);
        return Ok(None);
    }
    gpu.spoil_arena();
    // Whole blocks in random order, as prompts have them.
    let mut ids: Vec<i64> = (0..blocks as i64).collect();
    let mut rng = Rng(5);
    for last in (1..ids.len()).rev() {
        ids.swap(last, (rng.next() % (last as u64 + 1)) as usize);
    }
    let slot = |token: usize| ids[token / BLOCK] * BLOCK as i64 + (token % BLOCK) as i64;
    let slots: Vec<i64> = (0..tokens).map(slot).collect();
    let positions: Vec<u32> = (0..tokens as u32).map(|token| token % 4096).collect();
    let limits = StepLimits {
        max_rows: 1,
        max_tokens: tokens,
        max_blocks: 1,
        max_kv_len: 1,
        max_mask_bytes: 0,
    };
    let mut step = StepBuffer::new(&gpu.cuda, limits, &[])?;
    let batch = BatchView {
        qo_indptr: &[0, tokens as u32],
        kv_indptr: &[0, 0],
        kv_indices: &[],
        kv_last_page_len: &[0],
        block_size: BLOCK,
    };
    let arrays = StepArrays { batch, slot_mapping: &slots, positions: &positions, tokens: &[] };
    step.upload(&gpu.stream, &arrays, &[])?;
    let extent = |heads| Extent::contiguous(tokens, heads, DIM);
    let k = gpu.buffer(DType::Bf16, tokens * kv_heads * DIM)?;
    let v = gpu.buffer(DType::Bf16, tokens * kv_heads * DIM)?;
    let q = gpu.buffer(DType::Bf16, tokens * heads * DIM)?;
    let scale = gpu.upload(bytemuck::bytes_of(&SCALE))?;
    let table = RopeConfig::new(DIM, 10_000.0).table(4096)?;
    let cos_sin = gpu.upload(bytemuck::cast_slice(&table))?;
    let scales = (dtype == DType::Fp8E4m3).then_some(DeviceScales {
        k: scale.address(),
        v: scale.address(),
        per_head: false,
    });
    let append = Append::new(&gpu.cuda, DType::Bf16, dtype)?;
    let of_copy = |copy: usize| {
        let at = gpu.arena.address() + (copy * 2 * half) as u64;
        // SAFETY: the arena has so many copies, and lives until the stream is done.
        let cache = unsafe { DeviceCache::new(at, at + half as u64, layout, scales) }?;
        let rope = rotated.then(|| Rope {
            cos_sin: cos_sin.address(),
            max_position: 4096,
            rotary_dim: DIM,
            pairs: RopePairs::Half,
            q: Some(tensor(&q, extent(heads))),
        });
        let (k, v) = (tensor(&k, extent(kv_heads)), tensor(&v, extent(kv_heads)));
        Ok(AppendArgs { k, v, cache, rope })
    };
    let calls: Vec<_> = (0..copies.max(2)).map(|n| of_copy(n % copies)).collect::<Result<_>>()?;
    let kv = 2 * tokens * kv_heads * DIM * (2 + dtype.size());
    let bytes = kv + if rotated { 4 * tokens * heads * DIM } else { 0 };
    // The first call is compared, from a cache of zeros: nothing else may be written either.
    let mut host = [&k, &v, &q].map(|buffer| vec![bf16::ZERO; buffer.len() / 2]);
    for (numbers, buffer) in host.iter_mut().zip([&k, &v, &q]) {
        gpu.stream.read(bytemuck::cast_slice_mut(numbers), buffer, 0)?;
    }
    gpu.stream.fill(&gpu.arena, 0, 2 * half, 0)?;
    // SAFETY: all memory lives until the stream is done, and it is in no other use.
    unsafe { append.run(&gpu.stream, &step, &calls[0]) }?;
    let [host_k, host_v, host_q] = &mut host;
    let new = cpu::Append {
        scales: match dtype {
            DType::Fp8E4m3 => KvScales { k: &[SCALE], v: &[SCALE] },
            _ => KvScales::NONE,
        },
        rope: match rotated {
            true => Some(cpu::Rope {
                positions: &positions,
                cos_sin: &table,
                rotary_dim: DIM,
                pairs: RopePairs::Half,
                q: Some(TensorMut::new(host_q, extent(heads))?),
            }),
            false => None,
        },
        ..cpu::Append::new(
            TensorRef::new(host_k, extent(kv_heads))?,
            TensorRef::new(host_v, extent(kv_heads))?,
            &slots,
        )
    };
    let expected = appended(processor, layout, new)?;
    let mut found = vec![0; 2 * half];
    gpu.stream.read(&mut found, &gpu.arena, 0)?;
    let mut found_q = vec![bf16::ZERO; host_q.len()];
    gpu.stream.read(bytemuck::cast_slice_mut(&mut found_q), &q, 0)?;
    let same_q = bytemuck::cast_slice::<_, u8>(&found_q) == bytemuck::cast_slice::<_, u8>(host_q);
    if found != expected || !same_q {
        return Err(Error::Device(format!("{name}: other bytes than the processor's")));
    }
    let samples = sample(gpu, bytes, calls.len(), |stream| {
        // SAFETY: all memory lives until the stream is done, and it is in no other use.
        calls.iter().try_for_each(|args| unsafe { append.run(stream, &step, args) })
    })?;
    Ok(Some(row(name, bytes, tokens, samples)))
}

/// The bytes of K, then of V, that the processor's kernel makes of zeros.
fn appended(cpu: &Cpu, layout: KvLayout, new: cpu::Append<'_>) -> Result<Vec<u8>> {
    fn of<T: bytemuck::Pod>(cpu: &Cpu, layout: KvLayout, new: cpu::Append<'_>) -> Result<Vec<u8>> {
        let zeros = vec![<T as bytemuck::Zeroable>::zeroed(); layout.k_extent()?];
        let (mut k, mut v) = (zeros.clone(), zeros);
        cpu::append(cpu, &mut KvCache::new(&mut k, &mut v, layout)?, new)?;
        Ok([bytemuck::cast_slice(&k), bytemuck::cast_slice(&v)].concat())
    }
    match layout.dtype {
        DType::Fp8E4m3 => of::<Fp8E4m3>(cpu, layout, new),
        _ => of::<bf16>(cpu, layout, new),
    }
}

fn row(name: &str, bytes: usize, tokens: usize, samples: Vec<Sample>) -> Row {
    let (bytes, operations, error) = (bytes as f64, 0.0, 0.0);
    Row { name: name.to_owned(), bytes, operations, tokens, error, samples }
}

/// As many blocks as a step may copy or swap, of all layers, in one launch.
fn moves(gpu: &mut Gpu, name: &str, kind: u32, ops: usize, layers: usize) -> Result<Option<Row>> {
    let layout = KvLayout::nhd(DType::Bf16, 4 * ops, BLOCK, HEADS.1, DIM);
    let host_layout = KvLayout { num_blocks: ops, ..layout };
    let (half, host_half) = (layout.k_extent()? * 2, host_layout.k_extent()? * 2);
    if gpu.arena.len() < 2 * layers * half {
        println!("{name:<52} skipped: its caches are {} MiB", (layers * half) >> 19);
        return Ok(None);
    }
    gpu.fill_arena(DType::Bf16)?;
    gpu.spoil_arena();
    let mut pinned = PinnedBuffer::new(&gpu.cuda, 2 * layers * host_half)?;
    pinned.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 7) as u8);
    let caches = |start: u64, half: usize, layout: KvLayout| -> Result<Vec<DeviceCache>> {
        let of_layer = |layer: usize| {
            let k = start + (2 * layer * half) as u64;
            // SAFETY: the memory holds all layers, and lives until the stream is done.
            unsafe { DeviceCache::new(k, k + half as u64, layout, None) }
        };
        (0..layers).map(of_layer).collect()
    };
    let device = caches(gpu.arena.address(), half, layout)?;
    let host = caches(pinned.device_address()?, host_half, host_layout)?;
    let mut mover = BlockMover::new(&gpu.cuda, &device, &host)?;
    let op = |n: usize| {
        let (here, there) = (4 * n as u32, n as u32);
        match kind {
            BlockOp::COPY => BlockOp { kind, src: here, dst: here + 2 },
            BlockOp::SWAP_OUT => BlockOp { kind, src: here, dst: there },
            _ => BlockOp { kind, src: there, dst: here },
        }
    };
    let list: Vec<BlockOp> = (0..ops).map(op).collect();
    let block = BLOCK * HEADS.1 * DIM * 2;
    let moved = ops * layers * 2 * block;
    // What crosses a bus once is counted once.
    let bytes = if kind == BlockOp::COPY { 2 * moved } else { moved };
    mover.run(&gpu.stream, &list)?;
    gpu.stream.synchronize()?;
    for (op, array) in list.iter().flat_map(|op| [0, 2 * layers - 1].map(|array| (op, array))) {
        let read = |id: u32, on_host: bool| -> Result<Vec<u8>> {
            let mut bytes = vec![0; block];
            match on_host {
                true => bytes
                    .copy_from_slice(&pinned[array * host_half + id as usize * block..][..block]),
                false => {
                    gpu.stream.read(&mut bytes, &gpu.arena, array * half + id as usize * block)?
                }
            }
            Ok(bytes)
        };
        let from = read(op.src, kind == BlockOp::SWAP_IN)?;
        if from != read(op.dst, kind == BlockOp::SWAP_OUT)? {
            return Err(Error::Device(format!("{name}: a block is not what was moved there")));
        }
    }
    let mut samples = sample(gpu, bytes, 1, |stream| mover.run(stream, &list))?;
    if kind != BlockOp::COPY {
        let mut memory = PinnedBuffer::new(&gpu.cuda, moved)?;
        for sample in &mut samples {
            let seconds = gpu.time(|stream| match kind {
                // SAFETY: the buffer lives until the stream is done, and it is in no other use.
                BlockOp::SWAP_OUT => unsafe { stream.download(&mut memory, &gpu.arena, 0) },
                // SAFETY: as above.
                _ => unsafe { stream.upload(&gpu.arena, 0, &memory) },
            })?;
            sample.limits = vec![("driver's copy", Unit::Bytes, moved as f64 / seconds)];
        }
    }
    Ok(Some(row(name, bytes, ops * BLOCK, samples)))
}

fn merge(gpu: &mut Gpu, name: &str, count: usize, tokens: usize) -> Result<Option<Row>> {
    let heads = HEADS.0;
    let extent = Extent::contiguous(tokens, heads, DIM);
    let elements = tokens * heads * DIM;
    let buffers: Vec<_> = (0..=count)
        .map(|_| {
            let lse = CudaBuffer::new(&gpu.cuda, tokens * heads * 4)?;
            gpu.stream.fill(&lse, 0, lse.len(), 0)?;
            Ok((gpu.buffer(DType::Bf16, elements)?, lse))
        })
        .collect::<Result<_>>()?;
    let ((o, lse), states) = buffers.split_last().expect("one is the result's");
    let states: Vec<_> =
        states.iter().map(|(o, lse)| State { o: tensor(o, extent), lse: lse.address() }).collect();
    let kernel = Merge::new(&gpu.cuda, DType::Bf16)?;
    let bytes = (count + 1) * (2 * elements + 4 * tokens * heads);
    let samples = sample(gpu, bytes, 1, |stream| {
        // SAFETY: all memory lives until the stream is done, and it is in no other use.
        unsafe { kernel.run(stream, &states, tensor(o, extent), lse.address()) }
    })?;
    // All states are the same numbers, and so is what they merge to.
    let (mut first, mut merged) = (vec![0; elements * 2], vec![0; elements * 2]);
    gpu.stream.read(&mut first, &buffers[0].0, 0)?;
    gpu.stream.read(&mut merged, o, 0)?;
    if first != merged {
        return Err(Error::Device(format!("{name}: equal states merged to other numbers")));
    }
    Ok(Some(row(name, bytes, tokens, samples)))
}
