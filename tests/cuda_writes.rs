//! Appending, merging and block moves on a GPU, or on the emulator that runs their kernels, against
//! the processor's kernels, which have tests of their own: bit by bit where arithmetic is defined.
#![cfg(feature = "cuda-driver")]

#[path = "common/gpu.rs"]
mod device;
#[path = "common/rng.rs"]
mod rng;

use std::sync::Arc;

use half::bf16;
use inflight::cache::BlockOp;
use inflight::device::cpu::{Cpu, CpuConfig};
use inflight::device::cuda::{Cuda, CudaBuffer, CudaStream, PinnedBuffer};
use inflight::kernels::cpu;
use inflight::kernels::cuda::{Append, BlockMover, Merge, StepBuffer};
use inflight::kernels::rope::{RopeConfig, RopePairs};
use inflight::kernels::tensor::Shape;
use inflight::kernels::{
    AppendArgs, BatchView, DType, DeviceCache, DeviceScales, DeviceTensor, KvCache, KvLayout,
    KvScales, Rope, State, StepArrays, StepLimits, TensorMut, TensorRef,
};

use device::{Device, device};
use rng::Rng;

fn gpu() -> Option<(Arc<Cuda>, CudaStream, Device)> {
    let device = device()?;
    let stream = CudaStream::new(&device.cuda).expect("a stream");
    Some((Arc::clone(&device.cuda), stream, device))
}

/// Races, reads of what nobody wrote, and whatever else the emulator reports.
fn reports(device: &Device) -> Vec<String> {
    device.emulator.map_or_else(Vec::new, simt::Emulator::reports)
}

fn upload(cuda: &Arc<Cuda>, stream: &CudaStream, bytes: &[u8]) -> CudaBuffer {
    let buffer = CudaBuffer::new(cuda, bytes.len().max(16)).expect("device memory");
    stream.write(&buffer, 0, bytes).expect("a copy");
    buffer
}

fn download(stream: &CudaStream, buffer: &CudaBuffer, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read(&mut bytes, buffer, 0).expect("a copy");
    bytes
}

fn host() -> Cpu {
    Cpu::new(&CpuConfig { threads: Some(1), ..CpuConfig::default() }).expect("a processor")
}

/// Every exponent, signs, zeros.
fn number(rng: &mut Rng) -> bf16 {
    match rng.below(8) {
        0 => bf16::from_bits(rng.next() as u16 & 0xbf7f),
        1 => bf16::from_f32(0.0),
        _ => bf16::from_f32((rng.next() as i16) as f32 / 4096.0),
    }
}

#[test]
fn appended_bytes_are_the_processors() {
    let Some((cuda, stream, device)) = gpu() else { return };
    let (cpu, mut rng, mut cases) = (host(), Rng::new(1), 0);
    for n in 0..48 {
        let dim = [8, 64, 80, 128, 256][n % 5];
        let (heads, q_heads, bs) = (rng.within(1, 3), rng.within(1, 5), rng.pick(&[1, 3, 16]));
        let (tokens, blocks) = (rng.within(1, 40), rng.within(14, 60));
        let fp8 = n % 2 == 1;
        let dtype = if fp8 { DType::Fp8E4m3 } else { DType::Bf16 };
        // Rows of 8 fp8 numbers are no multiple of 16 bytes.
        let dim = if fp8 { dim.max(64) } else { dim };
        let layout = match rng.chance(50) {
            true => KvLayout::nhd(dtype, blocks, bs, heads, dim),
            false => KvLayout::hnd(dtype, blocks, bs, heads, dim),
        };
        let mut slots: Vec<i64> = (0..(blocks * bs) as i64).collect();
        (1..slots.len()).rev().for_each(|i| slots.swap(i, rng.below(i + 1)));
        let tokens = tokens.min(slots.len());
        slots.truncate(tokens);
        slots.iter_mut().for_each(|slot| *slot = if rng.chance(15) { -1 } else { *slot });
        let positions: Vec<u32> = (0..tokens).map(|_| rng.below(64) as u32).collect();
        let [k, v] = [(); 2].map(|()| -> Vec<bf16> {
            (0..tokens * heads * dim).map(|_| number(&mut rng)).collect()
        });
        let q: Vec<bf16> = (0..tokens * q_heads * dim).map(|_| number(&mut rng)).collect();
        // One for all heads, or one a head.
        let per_head = rng.chance(50);
        let count = if per_head { heads } else { 1 };
        let [k_scales, v_scales] =
            [0.37_f32, 1.9].map(|s| (0..count).map(|h| s + h as f32).collect::<Vec<_>>());
        let rotary_dim = rng.within(1, dim / 2) * 2;
        let table = RopeConfig::new(rotary_dim, 10_000.0).table(64).expect("a table");
        let pairs = rng.pick(&[RopePairs::Half, RopePairs::Interleaved]);
        let rotated = rng.chance(70);

        let bytes = blocks * bs * heads * dim * dtype.size();
        let (mut k_host, mut v_host) =
            (vec![0x55_u128; bytes.div_ceil(16)], vec![0x55_u128; bytes.div_ceil(16)]);
        let (start, mut q_host) = (bytemuck::cast_slice::<_, u8>(&k_host).to_vec(), q.clone());
        let (shape, q_shape) =
            (Shape::contiguous(tokens, heads, dim), Shape::contiguous(tokens, q_heads, dim));
        {
            let mut cache = KvCache::new(
                &mut bytemuck::cast_slice_mut::<_, u8>(&mut k_host)[..bytes],
                &mut bytemuck::cast_slice_mut::<_, u8>(&mut v_host)[..bytes],
                layout,
            )
            .expect("a cache");
            let refs = [&k, &v].map(|x| TensorRef::new(x, shape).expect("it fits"));
            let mut args = cpu::Append::new(refs[0], refs[1], &slots);
            args.scales = match fp8 {
                true => KvScales { k: &k_scales, v: &v_scales },
                false => KvScales::NONE,
            };
            args.rope = rotated.then(|| cpu::Rope {
                positions: &positions,
                cos_sin: &table,
                rotary_dim,
                pairs,
                q: Some(TensorMut::new(&mut q_host, q_shape).expect("it fits")),
            });
            cpu::append(&cpu, &mut cache, args).expect("appended");
        }

        let limits = StepLimits {
            max_rows: 1,
            max_tokens: tokens,
            max_blocks: 1,
            max_kv_len: 1,
            max_mask_bytes: 0,
        };
        let mut step = StepBuffer::new(&cuda, limits, &[]).expect("a buffer");
        let batch = BatchView {
            qo_indptr: &[0, tokens as u32],
            kv_indptr: &[0, 0],
            kv_indices: &[],
            kv_last_page_len: &[0],
            block_size: bs,
        };
        let arrays = StepArrays { batch, slot_mapping: &slots, positions: &positions, tokens: &[] };
        step.upload(&stream, &arrays, &[]).expect("an upload");
        let raw = |x: &[bf16]| upload(&cuda, &stream, bytemuck::cast_slice(x));
        let (k_new, v_new, q_dev) = (raw(&k), raw(&v), raw(&q));
        let (k_dev, v_dev) = (upload(&cuda, &stream, &start), upload(&cuda, &stream, &start));
        let numbers = |x: &[f32]| upload(&cuda, &stream, bytemuck::cast_slice(x));
        let (k_scale, v_scale, cos_sin) = (numbers(&k_scales), numbers(&v_scales), numbers(&table));
        // SAFETY: all buffers live until the stream is done, below.
        let tensor =
            |at: &CudaBuffer, shape| unsafe { DeviceTensor::new(at.address(), DType::Bf16, shape) };
        let device_scales =
            fp8.then(|| DeviceScales { k: k_scale.address(), v: v_scale.address(), per_head });
        // SAFETY: as above.
        let cache =
            unsafe { DeviceCache::new(k_dev.address(), v_dev.address(), layout, device_scales) };
        let rope = rotated.then(|| Rope {
            cos_sin: cos_sin.address(),
            max_position: 64,
            rotary_dim,
            pairs,
            q: Some(tensor(&q_dev, q_shape)),
        });
        let args = AppendArgs {
            k: tensor(&k_new, shape),
            v: tensor(&v_new, shape),
            cache: cache.expect("a cache"),
            rope,
        };
        let append = Append::new(&cuda, DType::Bf16, dtype).expect("a kernel");
        // SAFETY: all memory lives until the stream is done.
        unsafe { append.run(&stream, &step, &args) }.expect("a launch");
        stream.synchronize().expect("done");
        let what = format!("{layout:?}, {tokens} tokens, rope {rotated} {pairs:?} {rotary_dim}");
        let same = |dev: &CudaBuffer, host: &[u8]| download(&stream, dev, host.len()) == host;
        assert!(same(&k_dev, &bytemuck::cast_slice::<_, u8>(&k_host)[..bytes]), "K: {what}");
        assert!(same(&v_dev, &bytemuck::cast_slice::<_, u8>(&v_host)[..bytes]), "V: {what}");
        assert!(same(&q_dev, bytemuck::cast_slice(&q_host)), "Q: {what}");
        cases += 1;
    }
    assert_eq!(reports(&device), Vec::<String>::new());
    println!("{cases} appends, bit by bit");
}

#[test]
fn merged_states_are_the_processors() {
    let Some((cuda, stream, device)) = gpu() else { return };
    let (cpu, mut rng) = (host(), Rng::new(2));
    let mut most = 0.0_f32;
    for n in 0..32 {
        let (tokens, heads, dim) = (rng.within(1, 20), rng.within(1, 5), [8, 64, 120, 256][n % 4]);
        let shape = Shape::contiguous(tokens, heads, dim);
        let count = if n % 8 == 7 { 16 } else { rng.within(1, 5) };
        // Of sinks as high and as low as there are.
        let extreme = n >= 24;
        let states: Vec<(Vec<bf16>, Vec<f32>)> = (0..count)
            .map(|_| {
                let o = (0..tokens * heads * dim)
                    .map(|_| bf16::from_f32(rng.next() as i16 as f32 / 8192.0));
                let o = o.collect();
                let lse = (0..tokens * heads)
                    .map(|_| match rng.below(4) {
                        0 => rng.pick(&[f32::NEG_INFINITY, f32::INFINITY]),
                        1 if extreme => rng.pick(&[f32::MAX, f32::MIN, 0.0, -0.0]),
                        _ => rng.next() as i16 as f32 / 4096.0,
                    })
                    .collect();
                (o, lse)
            })
            .collect();
        let (mut o, mut lse) = (vec![bf16::NAN; tokens * heads * dim], vec![0.0; tokens * heads]);
        let views: Vec<_> = states
            .iter()
            .map(|(o, lse)| cpu::State { o: TensorRef::new(o, shape).expect("it fits"), lse })
            .collect();
        let out = TensorMut::new(&mut o, shape).expect("it fits");
        cpu::merge(&cpu, &views, out, Some(&mut lse)).expect("merged");

        let raw: Vec<_> = states
            .iter()
            .map(|(o, lse)| {
                let o = upload(&cuda, &stream, bytemuck::cast_slice(o));
                (o, upload(&cuda, &stream, bytemuck::cast_slice(lse)))
            })
            .collect();
        let out = upload(&cuda, &stream, &vec![0xff; tokens * heads * dim * 2]);
        let out_lse = upload(&cuda, &stream, &vec![0xff; tokens * heads * 4]);
        // SAFETY: all buffers live until the stream is done, below.
        let tensor =
            |at: &CudaBuffer| unsafe { DeviceTensor::new(at.address(), DType::Bf16, shape) };
        let on_device: Vec<_> =
            raw.iter().map(|(o, lse)| State { o: tensor(o), lse: lse.address() }).collect();
        let merge = Merge::new(&cuda, DType::Bf16).expect("a kernel");
        // SAFETY: all memory lives until the stream is done.
        unsafe { merge.run(&stream, &on_device, tensor(&out), out_lse.address()) }
            .expect("a launch");
        stream.synchronize().expect("done");
        let found = download(&stream, &out, tokens * heads * dim * 2);
        let found: Vec<bf16> = found.chunks_exact(2).map(bytemuck::pod_read_unaligned).collect();
        for (x, y) in found.iter().zip(&o) {
            let (x, y) = (x.to_f32(), y.to_f32());
            // A rounding of bf16, where sums differ in the last bit of f32.
            assert!((x - y).abs() <= y.abs() / 128.0 + 1e-6, "{x}, not {y}");
        }
        let found = download(&stream, &out_lse, tokens * heads * 4);
        for (x, y) in found.chunks_exact(4).map(bytemuck::pod_read_unaligned::<f32>).zip(&lse) {
            assert!(x == *y || (x - y).abs() <= 1e-5 * y.abs().max(1.0), "{x}, not {y}");
            most = most.max(if x == *y { 0.0 } else { (x - y).abs() });
        }
    }
    assert_eq!(reports(&device), Vec::<String>::new());
    println!("32 merges, LSE at most {most} apart");
}

/// An LSE that is NaN, of attention to NaN, makes its row NaN and reads no state that is not there.
#[test]
fn merged_states_of_nan_are_nan() {
    let Some((cuda, stream, device)) = gpu() else { return };
    let (tokens, heads, dim) = (3, 2, 64);
    let shape = Shape::contiguous(tokens, heads, dim);
    let merge = Merge::new(&cuda, DType::Bf16).expect("a kernel");
    for count in [2, 3, 5] {
        // SAFETY: all buffers live until the stream is done, below.
        let tensor =
            |at: &CudaBuffer| unsafe { DeviceTensor::new(at.address(), DType::Bf16, shape) };
        let ones = vec![bf16::ONE; tokens * heads * dim];
        let buffers: Vec<_> = (0..count)
            .map(|nth| {
                let mut lse = vec![0.5_f32; tokens * heads];
                if nth == 1 {
                    lse[heads] = f32::NAN;
                }
                [bytemuck::cast_slice(&ones), bytemuck::cast_slice(&lse)]
                    .map(|bytes| upload(&cuda, &stream, bytes))
            })
            .collect();
        let states: Vec<_> =
            buffers.iter().map(|[o, lse]| State { o: tensor(o), lse: lse.address() }).collect();
        let out = upload(&cuda, &stream, &vec![0; tokens * heads * dim * 2]);
        // SAFETY: all memory lives until the stream is done.
        unsafe { merge.run(&stream, &states, tensor(&out), 0) }.expect("a launch");
        stream.synchronize().expect("done");
        let found = download(&stream, &out, tokens * heads * dim * 2);
        for (row, found) in found.chunks_exact(dim * 2).enumerate() {
            let numbers = found.chunks_exact(2).map(bytemuck::pod_read_unaligned::<bf16>);
            let right = |x: bf16| if row == heads { x.is_nan() } else { x == bf16::ONE };
            assert!(numbers.clone().all(right), "{count} states, row {row}: {numbers:?}");
        }
    }
    assert_eq!(reports(&device), Vec::<String>::new());
}

#[test]
fn blocks_move_in_the_order_listed() {
    let Some((cuda, stream, device)) = gpu() else { return };
    let reported = || reports(&device);
    let (mut rng, mut moved) = (Rng::new(3), 0);
    for n in 0..12 {
        let (blocks, host_blocks, layers) = (rng.within(4, 20), rng.within(2, 9), rng.within(1, 3));
        let layout = KvLayout::nhd(DType::Fp8E4m3, blocks, rng.within(1, 5), 2, 64 + 16 * (n % 2));
        let host_layout = KvLayout { num_blocks: host_blocks, ..layout };
        let block = layout.block_size * layout.num_heads * layout.head_dim;
        let bytes = |rng: &mut Rng, blocks: usize| -> Vec<u8> {
            (0..blocks * block).map(|_| rng.next() as u8).collect()
        };
        let scale = upload(&cuda, &stream, bytemuck::bytes_of(&1.0_f32));
        let scales = Some(DeviceScales { k: scale.address(), v: scale.address(), per_head: false });
        // K and V of each layer, on both sides: what is there, and what is to be there.
        let mut model = Vec::new();
        let (mut device, mut pinned) = (Vec::new(), Vec::new());
        for _ in 0..2 * layers {
            let (here, there) = (bytes(&mut rng, blocks), bytes(&mut rng, host_blocks));
            device.push(upload(&cuda, &stream, &here));
            let mut memory = PinnedBuffer::new(&cuda, there.len()).expect("pinned memory");
            memory.copy_from_slice(&there);
            pinned.push(memory);
            model.push((here, there));
        }
        // SAFETY: all memory lives until the stream is done, below.
        let cache =
            |k, v, layout| unsafe { DeviceCache::new(k, v, layout, scales).expect("a cache") };
        let on_device: Vec<_> = device
            .chunks_exact(2)
            .map(|kv| cache(kv[0].address(), kv[1].address(), layout))
            .collect();
        let on_host: Vec<_> = pinned
            .chunks_exact(2)
            .map(|kv| {
                let at = |memory: &PinnedBuffer| memory.device_address().expect("mapped");
                cache(at(&kv[0]), at(&kv[1]), host_layout)
            })
            .collect();
        let mut mover = BlockMover::new(&cuda, &on_device, &on_host).expect("a mover");
        let ops: Vec<BlockOp> = (0..rng.within(1, 30))
            .map(|_| {
                let kind = rng.pick(&[BlockOp::COPY, BlockOp::SWAP_OUT, BlockOp::SWAP_IN]);
                let (from, to) = match kind {
                    BlockOp::COPY => (blocks, blocks),
                    BlockOp::SWAP_OUT => (blocks, host_blocks),
                    _ => (host_blocks, blocks),
                };
                let (src, dst) = (rng.below(from) as u32, rng.below(to) as u32);
                BlockOp { kind, src, dst }
            })
            .collect();
        mover.run(&stream, &ops).expect("queued");
        stream.synchronize().expect("done");
        for op in &ops {
            let range = |i: u32| i as usize * block..(i as usize + 1) * block;
            for (here, there) in &mut model {
                let from = if op.kind == BlockOp::SWAP_IN { &*there } else { &*here };
                let moved = from[range(op.src)].to_vec();
                let to = if op.kind == BlockOp::SWAP_OUT { &mut *there } else { &mut *here };
                to[range(op.dst)].copy_from_slice(&moved);
            }
            moved += 1;
        }
        assert_eq!(reported(), Vec::<String>::new(), "{ops:?}");
        for (i, (here, there)) in model.iter().enumerate() {
            assert!(download(&stream, &device[i], here.len()) == *here, "device, {i}: {ops:?}");
            assert!(pinned[i][..] == there[..], "host, {i}: {ops:?}");
        }
        let beyond = BlockOp { kind: BlockOp::COPY, src: 0, dst: blocks as u32 };
        assert!(mover.run(&stream, &[beyond]).is_err());
    }
    assert_eq!(reports(&device), Vec::<String>::new());
    println!("{moved} block operations");
}

/// A list of pairs whose event could not be recorded is not written over while it is read.
#[test]
fn pairs_stay_until_they_are_read() {
    let Some((cuda, stream, device)) = gpu() else { return };
    let Some(emulator) = device.emulator else {
        return println!("skipped: only the emulator fails on demand");
    };
    let layout = KvLayout::nhd(DType::Bf16, 8, 1, 1, 8);
    let bytes: Vec<u8> = (0..8 * 16).collect();
    let (k, v) = (upload(&cuda, &stream, &bytes), upload(&cuda, &stream, &bytes));
    // SAFETY: both live until the stream is done.
    let cache = unsafe { DeviceCache::new(k.address(), v.address(), layout, None) };
    let mut mover = BlockMover::new(&cuda, &[cache.expect("a cache")], &[]).expect("a mover");
    let op = |src, dst| [BlockOp { kind: BlockOp::COPY, src, dst }];
    emulator.fail_call(Some("cuEventRecord"), 1, 999, false);
    assert!(mover.run(&stream, &op(0, 4)).is_err() && !emulator.is_failure_pending());
    mover.run(&stream, &op(1, 5)).expect("queued");
    let mut want = bytes.clone();
    want.copy_within(0..16, 4 * 16);
    want.copy_within(16..32, 5 * 16);
    assert_eq!(download(&stream, &k, want.len()), want);
    assert_eq!(download(&stream, &v, want.len()), want);
}
