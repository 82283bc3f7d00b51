//! Kernels queued one after the other with nothing between: from compute capability 9.0 on each
//! begins before the one before it is done, and waits where it reads what that one writes, or writes
//! what that one reads. What they compute is what they compute one at a time.

use std::sync::Arc;

use inflight::Result;
use inflight::device::cuda::{Cuda, CudaBuffer, CudaStream};
use inflight::kernels::cuda::{Append, Attention, Fusion, Merge, StepBuffer};
use inflight::kernels::rope::{RopeConfig, RopePairs};
use inflight::kernels::tensor::Shape;
use inflight::kernels::{
    AppendArgs, AttentionArgs, AttentionConfig, DType, DeviceTensor, Rope, State, StepArrays,
};

use crate::attention::{Case, Spec};
use crate::gpu::{self, Gpu, OnDevice};
use crate::rng::Rng;

type Rows = &'static [(usize, usize)];

const LAYERS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    /// Each kernel is waited for before the next is queued.
    OneAtATime,
    Queued,
    /// As a graph, where both kernels of attention run whatever the rows are.
    Captured,
    /// The same, captured when the step had these rows.
    CapturedOf(Rows),
}

/// Where the tokens of a step go, the end of their rows: slots and positions.
fn places(case: &Case) -> (Vec<i64>, Vec<u32>) {
    let size = case.cache.layout.block_size;
    let (mut slots, mut positions) = (Vec::new(), Vec::new());
    for (row, &(q_len, kv_len)) in case.rows.iter().enumerate() {
        let table = case.table(row);
        for at in kv_len - q_len..kv_len {
            slots.push((table[at / size] as usize * size + at % size) as i64);
            positions.push(at as u32);
        }
    }
    (slots, positions)
}

/// Plans and uploads a step.
fn upload(
    stream: &CudaStream,
    case: &Case,
    attention: &mut Attention,
    step: &mut StepBuffer,
) -> Result<()> {
    let (batch, (slots, positions)) = (case.batch(), places(case));
    attention.plan(batch, case.cache.layout.num_blocks, None)?;
    let arrays = StepArrays { batch, slot_mapping: &slots, positions: &positions, tokens: &[] };
    step.upload(stream, &arrays, &[attention])
}

/// Rotates the queries in place and appends keys and values, attends, and merges the outputs with
/// themselves; the same again in the same memory, but for where the merged outputs go. Those.
fn outputs(
    gpu: &Gpu,
    cuda: &Arc<Cuda>,
    case: &Case,
    fusion: Fusion,
    how: How,
) -> Result<Vec<Vec<u8>>> {
    let (stream, config) = (&gpu.stream, case.spec.config);
    let memory = OnDevice::new(gpu, case);
    let mut attention = Attention::with_fusion(cuda, config, gpu::limits(case), fusion)?;
    let mut step = StepBuffer::new(cuda, *attention.limits(), &[&attention])?;
    let append = Append::new(cuda, config.q_dtype, config.kv_dtype)?;
    let merge = Merge::new(cuda, config.q_dtype)?;

    let (tokens, heads, dim) = (case.num_tokens(), config.num_kv_heads, config.head_dim);
    let mut rng = Rng::new(9);
    let mut numbers = || -> Vec<half::bf16> {
        let number = |_| half::bf16::from_f32(rng.below(2001) as f32 / 1000.0 - 1.0);
        (0..tokens * heads * dim).map(number).collect()
    };
    let new: Vec<_> =
        (0..2 * LAYERS).map(|_| gpu.upload(bytemuck::cast_slice(&numbers()))).collect();
    let most = case.rows.iter().map(|row| row.1).max().unwrap_or(0);
    let cos_sin = RopeConfig::new(dim, 10_000.0).table(most)?;
    let cos_sin = gpu.upload(bytemuck::cast_slice(&cos_sin));
    let poison = |bytes: usize| gpu.upload(&vec![0xff; bytes]);
    let rows = tokens * config.num_q_heads;
    let results: Vec<[CudaBuffer; 2]> =
        (0..LAYERS).map(|_| [poison(rows * dim * 2), poison(rows * 4)]).collect();
    // SAFETY: all memory lives until the stream is done, below.
    let tensor = |at: &CudaBuffer, heads| unsafe {
        DeviceTensor::new(at.address(), DType::Bf16, Shape::contiguous(tokens, heads, dim))
    };
    let queue = |stream: &CudaStream, attention: &Attention, step: &StepBuffer| -> Result<()> {
        let pause = || if how == How::OneAtATime { stream.synchronize() } else { Ok(()) };
        let AttentionArgs { q, o, lse, cache, .. } = memory.args;
        for (layer, [out, out_lse]) in results.iter().enumerate() {
            let rope = Rope {
                cos_sin: cos_sin.address(),
                max_position: most as u32,
                rotary_dim: dim,
                pairs: RopePairs::Half,
                q: Some(q),
            };
            let [k, v] = [0, 1].map(|nth| tensor(&new[2 * layer + nth], heads));
            // SAFETY: all memory lives until the stream is done, below.
            unsafe { append.run(stream, step, &AppendArgs { k, v, cache, rope: Some(rope) }) }?;
            pause()?;
            // SAFETY: as above.
            unsafe { attention.run(stream, step, 0, &memory.args) }?;
            pause()?;
            let states = [State { o, lse }, State { o, lse }];
            let out = tensor(out, config.num_q_heads);
            // SAFETY: as above.
            unsafe { merge.run(stream, &states, out, out_lse.address()) }?;
            pause()?;
        }
        Ok(())
    };

    let first = match how {
        How::CapturedOf(rows) => &case.with_rows(rows),
        _ => case,
    };
    upload(stream, first, &mut attention, &mut step)?;
    if matches!(how, How::OneAtATime | How::Queued) {
        queue(stream, &attention, &step)?;
    } else {
        let was_fused = attention.is_fused();
        let mut graph = stream.capture(|stream| queue(stream, &attention, &step))?;
        if how != How::Captured {
            upload(stream, case, &mut attention, &mut step)?;
            assert!(!was_fused && attention.is_fused(), "{how:?}: not as meant");
        }
        // SAFETY: as above.
        unsafe { graph.launch(stream) }?;
    }
    stream.synchronize()?;
    let read = |buffer: &CudaBuffer| {
        let mut bytes = vec![0; buffer.len()];
        stream.read(&mut bytes, buffer, 0).map(|()| bytes)
    };
    results.iter().flatten().map(read).collect()
}

fn check(gpu: &Gpu, cuda: &Arc<Cuda>, fusion: Fusion, rows: Rows, ways: &[(u64, How)]) {
    let config = AttentionConfig::new(8, 2, 128, DType::Bf16);
    let case = Case::new(&Spec::new(5, config, rows));
    let alone = outputs(gpu, cuda, &case, fusion, How::OneAtATime).unwrap();
    assert_eq!(gpu.reports(), Vec::<String>::new());
    let is_written = |bytes: &Vec<u8>| bytes.iter().any(|&byte| byte != 0xff);
    assert!(alone.iter().all(is_written), "{rows:?}: nothing was written");
    for &(seed, how) in ways {
        gpu.set_seed(seed);
        let found = outputs(gpu, cuda, &case, fusion, how).unwrap();
        let what = format!("{rows:?}, seed {seed}, {how:?}");
        assert_eq!(gpu.reports(), Vec::<String>::new(), "{what}");
        for (nth, (found, alone)) in found.iter().zip(&alone).enumerate() {
            let differ = found.iter().zip(alone).filter(|(a, b)| a != b).count();
            assert_eq!(differ, 0, "{what}: bytes of result {nth}, of {}", alone.len());
        }
    }
    gpu.set_seed(0);
}

/// Rows that a warp decodes alone, and one that is split.
const DECODE: [(usize, usize); 4] = [(1, 900), (1, 17), (2, 90), (1, 1)];
const PREFILL: [(usize, usize); 2] = [(33, 150), (20, 20)];
const BOTH: [(usize, usize); 4] = [DECODE[0], PREFILL[0], DECODE[1], PREFILL[1]];

const WAYS: [(u64, How); 4] =
    [(0, How::Queued), (0, How::Captured), (1, How::Queued), (2, How::Captured)];

#[test]
fn kernels_wait_for_each_other() {
    let Some(gpu) = gpu::gpu() else { return };
    for (fusion, rows) in [
        (Fusion::Never, &DECODE[..]),
        (Fusion::Never, &PREFILL[..]),
        (Fusion::Never, &BOTH[..]),
        (Fusion::Always, &BOTH[..]),
    ] {
        check(&gpu, &gpu.cuda, fusion, rows, &WAYS);
    }
}

/// What the driver compiles from PTX of 8.0 does not wait, on any device: it must not begin early.
#[test]
fn code_that_does_not_wait_begins_last() {
    let Some(gpu) = gpu::gpu() else { return };
    let Some(emulator) = gpu.emulator() else {
        return println!("skipped: a GPU runs one image of each kernel");
    };
    for (archs, capability) in [("80", 90), ("80", 100), ("80;90", 100)] {
        emulator.set_archs(archs);
        emulator.set_device(capability, 4);
        let cuda = Cuda::new(0).expect("the same device");
        check(&gpu, &cuda, Fusion::Never, &BOTH, &WAYS[..2]);
    }
    emulator.set_archs("");
    emulator.set_device(0, 0);
}

/// A graph of two launches has a block for each share of plans that are for two. Plans for one have
/// fewer, and the other blocks nothing to do but to wait.
#[test]
fn blocks_without_work_wait_too() {
    let Some(gpu) = gpu::gpu() else { return };
    let Some(emulator) = gpu.emulator() else {
        return println!("skipped: what is planned for one launch depends on the GPU");
    };
    const ONE_KIND: Rows = &[DECODE[0], (0, 0), DECODE[1], (0, 0)];
    for capability in [90, 100] {
        emulator.set_device(capability, 4);
        let cuda = Cuda::new(0).expect("the same device");
        check(&gpu, &cuda, Fusion::Auto, &BOTH, &[(0, How::CapturedOf(ONE_KIND))]);
    }
    emulator.set_device(0, 0);
}
