//! Caches of more than 2^32 elements: addresses that do not fit 32 bits, signed or not. Few blocks,
//! far apart, in memory that nobody touches between them.

use half::{bf16, f16};
use inflight::BlockId;
use inflight::cache::BlockOp;
use inflight::device::cuda::CudaBuffer;
use inflight::kernels::cuda::{Append, Attention, BlockMover, StepBuffer};
use inflight::kernels::tensor::Shape;
use inflight::kernels::{
    AppendArgs, AttentionArgs, AttentionConfig, BatchView, DType, DeviceCache, DeviceScales,
    DeviceTensor, Fp8E4m3, KvLayout, KvStrides, StepArrays, StepLimits,
};

use crate::gpu::{self, Gpu};

const NUM_BLOCKS: usize = 40;
const BLOCK_SIZE: usize = 16;
const HEADS: usize = 2;
const DIM: usize = 64;
const TOKEN: usize = HEADS * DIM;
const BLOCK: usize = BLOCK_SIZE * TOKEN;
/// Elements from a block to the next; V lies half way between K's.
const FAR: usize = 1 << 27;
/// Blocks on both sides of 2^31 and 2^32 elements and bytes; the last of all.
const TABLE: [u32; 7] = [39, 15, 16, 31, 32, 17, 8];

fn layout(dtype: DType) -> KvLayout {
    let strides = KvStrides { block: FAR, token: TOKEN, head: DIM };
    KvLayout {
        dtype,
        num_blocks: NUM_BLOCKS,
        block_size: BLOCK_SIZE,
        num_heads: HEADS,
        head_dim: DIM,
        k: strides,
        v: strides,
    }
}

/// K of a block, or V, in bytes.
fn place(dtype: DType, block: u32, is_value: bool) -> usize {
    (block as usize * FAR + if is_value { FAR / 2 } else { 0 }) * dtype.size()
}

/// So much memory, where there is.
fn memory(gpu: &Gpu, dtype: DType) -> Option<CudaBuffer> {
    let bytes = NUM_BLOCKS * FAR * dtype.size();
    let buffer = CudaBuffer::new(&gpu.cuda, bytes);
    if let Err(error) = &buffer {
        println!("skipped, {dtype}: {error}");
    }
    buffer.ok()
}

fn scales(gpu: &Gpu, dtype: DType) -> (CudaBuffer, Option<DeviceScales>) {
    let one = gpu.upload(bytemuck::bytes_of(&1.0_f32));
    let scales = DeviceScales { k: one.address(), v: one.address(), per_head: false };
    (one, (dtype == DType::Fp8E4m3).then_some(scales))
}

fn encode(dtype: DType, x: f32) -> Vec<u8> {
    match dtype {
        DType::Bf16 => bf16::from_f32(x).to_ne_bytes().to_vec(),
        DType::F16 => f16::from_f32(x).to_ne_bytes().to_vec(),
        _ => vec![Fp8E4m3::from_f32(x).0],
    }
}

/// Keys are all 0, and value `j` is 1 in element `j % DIM`: appended, then attended to.
#[test]
fn appended_and_read_far_away() {
    let Some(gpu) = gpu::gpu() else { return };
    for (new, dtype) in [(DType::Bf16, DType::Bf16), (DType::F16, DType::Fp8E4m3)] {
        let Some(buffer) = memory(&gpu, dtype) else { continue };
        let keys = TABLE.len() * BLOCK_SIZE - 5;
        // What is read or kept if addresses wrap.
        for block in [0, 1, 7, 9].into_iter().chain(TABLE) {
            for is_value in [false, true] {
                let at = place(dtype, block, is_value);
                gpu.stream.fill(&buffer, at, BLOCK * dtype.size(), 0xff).unwrap();
            }
        }
        let (_one, scales) = scales(&gpu, dtype);
        let v = buffer.address() + (FAR / 2 * dtype.size()) as u64;
        // SAFETY: the buffer holds all blocks, and lives until the stream is done.
        let cache = unsafe { DeviceCache::new(buffer.address(), v, layout(dtype), scales) };
        let cache = cache.unwrap();

        let limits = StepLimits {
            max_rows: 3,
            max_tokens: keys,
            max_blocks: 3 * TABLE.len(),
            max_kv_len: keys,
            max_mask_bytes: 0,
        };
        let mut config = AttentionConfig::new(4, HEADS, DIM, new);
        config.kv_dtype = dtype;
        let mut attention = Attention::new(&gpu.cuda, config, limits).unwrap();
        let mut step = StepBuffer::new(&gpu.cuda, limits, &[&attention]).unwrap();
        let slot = |j: usize| {
            i64::from(TABLE[j / BLOCK_SIZE]) * BLOCK_SIZE as i64 + (j % BLOCK_SIZE) as i64
        };
        let slots: Vec<i64> = (0..keys).map(slot).collect();
        let none = BatchView {
            qo_indptr: &[0, keys as u32],
            kv_indptr: &[0, 0],
            kv_indices: &[],
            kv_last_page_len: &[0],
            block_size: BLOCK_SIZE,
        };
        let arrays = StepArrays { batch: none, slot_mapping: &slots, positions: &[], tokens: &[] };
        step.upload(&gpu.stream, &arrays, &[]).unwrap();
        let value = |i: usize| f32::from(u8::from(i / TOKEN % DIM == i % DIM));
        let values: Vec<u8> = (0..keys * TOKEN).flat_map(|i| encode(new, value(i))).collect();
        let (k_new, v_new) = (gpu.upload(&vec![0; values.len()]), gpu.upload(&values));
        let shape = Shape::contiguous(keys, HEADS, DIM);
        // SAFETY: both live until the stream is done.
        let tensor = |of: &CudaBuffer| unsafe { DeviceTensor::new(of.address(), new, shape) };
        let args = AppendArgs { k: tensor(&k_new), v: tensor(&v_new), cache, rope: None };
        let append = Append::new(&gpu.cuda, new, dtype).unwrap();
        // SAFETY: all memory lives until the stream is done.
        unsafe { append.run(&gpu.stream, &step, &args) }.unwrap();
        // Where it belongs, to the byte.
        for (n, block) in TABLE.into_iter().enumerate() {
            for is_value in [false, true] {
                let mut found = vec![0; BLOCK * dtype.size()];
                let at = place(dtype, block, is_value);
                gpu.stream.read(&mut found, &buffer, at).unwrap();
                let want = (0..BLOCK).flat_map(|i| {
                    let j = n * BLOCK_SIZE + i / TOKEN;
                    match () {
                        () if j >= keys => vec![0xff; dtype.size()],
                        () if is_value => encode(dtype, value(j * TOKEN + i % TOKEN)),
                        () => encode(dtype, 0.0),
                    }
                });
                assert!(found == want.collect::<Vec<_>>(), "{dtype}, block {block}, {is_value}");
            }
        }

        // A row for each kernel, and one over other blocks.
        let table: Vec<BlockId> = [TABLE, TABLE, TABLE].concat().into_iter().map(BlockId).collect();
        let blocks = TABLE.len() as u32;
        let batch = BatchView {
            qo_indptr: &[0, 1, 41, 42],
            kv_indptr: &[0, blocks, 2 * blocks, 2 * blocks + 1],
            kv_indices: &table[..2 * TABLE.len() + 1],
            kv_last_page_len: &[11, 11, 3],
            block_size: BLOCK_SIZE,
        };
        attention.plan(batch, NUM_BLOCKS, None).unwrap();
        let arrays = StepArrays::new(batch);
        step.upload(&gpu.stream, &arrays, &[&attention]).unwrap();
        let elements = 42 * 4 * DIM;
        let q: Vec<u8> = (0..elements).flat_map(|_| encode(new, 1.0)).collect();
        let (q, o) = (gpu.upload(&q), gpu.upload(&vec![0xff; 2 * elements]));
        let lse = gpu.upload(&[0xff; 4 * 42 * 4]);
        let shape = Shape::contiguous(42, 4, DIM);
        // SAFETY: both live until the stream is done.
        let tensor = |of: &CudaBuffer| unsafe { DeviceTensor::new(of.address(), new, shape) };
        let args = AttentionArgs {
            lse: lse.address(),
            ..AttentionArgs::new(tensor(&q), cache, tensor(&o))
        };
        // SAFETY: all memory lives until the stream is done.
        unsafe { attention.run(&gpu.stream, &step, 0, &args) }.unwrap();
        let mut found = vec![0; 2 * elements];
        gpu.stream.read(&mut found, &o, 0).unwrap();
        let mut lse_found = vec![0.0_f32; 42 * 4];
        gpu.stream.read(bytemuck::cast_slice_mut(&mut lse_found), &lse, 0).unwrap();
        for token in 0..42 {
            let seen = match token {
                0 => keys,
                41 => 3,
                _ => keys - 40 + token,
            };
            for head in 0..4 {
                let lse = lse_found[4 * token + head];
                assert!((lse - (seen as f32).ln()).abs() < 1e-5, "{token}, {head}: {lse}");
                for d in 0..DIM {
                    let at = (4 * token + head) * DIM + d;
                    let bits = [found[2 * at], found[2 * at + 1]];
                    let x = match new {
                        DType::Bf16 => bf16::from_ne_bytes(bits).to_f32(),
                        _ => f16::from_ne_bytes(bits).to_f32(),
                    };
                    let want = (0..seen).filter(|j| j % DIM == d).count() as f32 / seen as f32;
                    assert!((x - want).abs() <= want / 64.0, "{token}, {head}, {d}: {x}, {want}");
                }
            }
        }
        println!("{dtype}: {} bytes spanned", buffer.len());
    }
    assert_eq!(gpu.reports(), Vec::<String>::new());
}

/// Page-locked memory that nobody touches where it is not used: the library's own is zeroed.
struct Pinned(*mut u8, usize);

impl Pinned {
    fn new(bytes: usize) -> Option<Self> {
        let mut start = std::ptr::null_mut();
        // SAFETY: `start` outlives the call; a context is current.
        let result = unsafe { cudarc::driver::sys::cuMemHostAlloc(&raw mut start, bytes, 3) };
        let there = result == cudarc::driver::sys::CUresult::CUDA_SUCCESS;
        there.then_some(Self(start.cast(), bytes))
    }

    fn bytes(&mut self, at: usize, len: usize) -> &mut [u8] {
        assert!(at + len <= self.1);
        // SAFETY: the range lies inside.
        let start = unsafe { self.0.add(at) };
        // SAFETY: as above, and it is borrowed as `self` is.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, and freed once.
        let _ = unsafe { cudarc::driver::sys::cuMemFreeHost(self.0.cast()) };
    }
}

#[test]
fn blocks_move_far_away() {
    let Some(gpu) = gpu::gpu() else { return };
    let dtype = DType::Fp8E4m3;
    let Some(buffer) = memory(&gpu, dtype) else { return };
    // SAFETY: the context lives as long as the device.
    let _ = unsafe { cudarc::driver::sys::cuCtxSetCurrent(gpu.cuda.context().cast()) };
    let Some(mut host) = Pinned::new(buffer.len()) else {
        return println!("skipped: {} page-locked bytes cannot be had", buffer.len());
    };
    let (_one, scales) = scales(&gpu, dtype);
    let cache = |start: u64| {
        let v = start + (FAR / 2) as u64;
        // SAFETY: both memories hold all blocks, and live until the stream is done.
        unsafe { DeviceCache::new(start, v, layout(dtype), scales) }.unwrap()
    };
    let (device, swapped) = (cache(buffer.address()), cache(host.0.addr() as u64));
    let pattern = |block: u32, is_value: bool| -> Vec<u8> {
        (0..BLOCK).map(|i| (block as usize * 7 + i * 3 + usize::from(is_value)) as u8).collect()
    };
    for block in TABLE.into_iter().chain([0, 1, 7, 9]) {
        for is_value in [false, true] {
            let at = place(dtype, block, is_value);
            gpu.stream.write(&buffer, at, &pattern(block, is_value)).unwrap();
        }
    }
    let mut mover = BlockMover::new(&gpu.cuda, &[device], &[swapped]).unwrap();
    let op = |kind, src, dst| BlockOp { kind, src, dst };
    let ops = [
        op(BlockOp::COPY, 39, 34),
        op(BlockOp::COPY, 16, 2),
        op(BlockOp::SWAP_OUT, 34, 38),
        op(BlockOp::SWAP_OUT, 32, 17),
        op(BlockOp::SWAP_OUT, 8, 33),
        op(BlockOp::SWAP_IN, 38, 36),
        op(BlockOp::SWAP_IN, 33, 18),
    ];
    mover.run(&gpu.stream, &ops).unwrap();
    gpu.stream.synchronize().unwrap();
    for is_value in [false, true] {
        for (block, from) in [(34, 39), (2, 16), (36, 39), (18, 8)].into_iter().chain(
            // What was not named is as it was.
            TABLE.into_iter().chain([0, 1, 7, 9]).map(|block| (block, block)),
        ) {
            let mut found = vec![0; BLOCK];
            gpu.stream.read(&mut found, &buffer, place(dtype, block, is_value)).unwrap();
            assert!(found == pattern(from, is_value), "block {block}, {is_value}");
        }
        for (block, from) in [(38, 39), (17, 32), (33, 8)] {
            let found = host.bytes(place(dtype, block, is_value), BLOCK);
            assert!(found == pattern(from, is_value), "host block {block}, {is_value}");
        }
    }
    assert_eq!(gpu.reports(), Vec::<String>::new());
    drop((mover, host));
    // SAFETY: nothing is current for the next test of this thread, as before.
    let _ = unsafe { cudarc::driver::sys::cuCtxSetCurrent(std::ptr::null_mut()) };
}
