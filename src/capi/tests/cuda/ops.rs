//! Append, attention, merge and block operations: a processor's results.

use std::ptr;

use super::super::super::blocks::*;
use super::super::super::ffi::Versioned;
use super::super::super::kv::*;
use super::super::super::merge::*;
use super::super::super::rope::*;
use super::super::super::step_view::inflight_block_op;
use super::super::super::tensor::*;
use super::super::{at, done};
use super::data::*;
use super::model::*;
use super::{Memory, On, both};
use crate::cache::BlockOp;
use crate::device::cuda::{CudaEvent, CudaStream};

/// Decodes, of which one is long enough to be split, a prompt, a chunk, and rows of nothing.
const MIXED: [(usize, usize); 6] = [(1, 800), (20, 20), (0, 0), (9, 200), (1, 17), (1, 1)];

#[test]
fn a_layer_is_the_processors() {
    let Some([cpu, gpu]) = both() else { return };
    let bf16 = Spec { q_dtype: INFLIGHT_DTYPE_BF16, kv_dtype: INFLIGHT_DTYPE_BF16, ..PLAIN };
    let fp8 = Spec { kv_dtype: INFLIGHT_DTYPE_FP8_E4M3, num_scales: 1, ..PLAIN };
    let specs = [
        PLAIN,
        Spec { order: Order::Hnd, rope: INFLIGHT_ROPE_PAIRS_HALF, ..PLAIN },
        Spec { order: Order::Interleaved, dlpack: true, general: true, ..PLAIN },
        bf16,
        Spec { order: Order::Interleaved, rope: INFLIGHT_ROPE_PAIRS_INTERLEAVED, ..bf16 },
        Spec { order: Order::Hnd, dlpack: true, q_heads: 6, dim: 128, ..bf16 },
        fp8,
        Spec { num_scales: HEADS as u32, general: true, dlpack: true, ..fp8 },
        Spec { q_dtype: INFLIGHT_DTYPE_BF16, order: Order::Hnd, num_scales: HEADS as u32, ..fp8 },
        Spec { q_dtype: INFLIGHT_DTYPE_BF16, rope: INFLIGHT_ROPE_PAIRS_HALF, dim: 80, ..fp8 },
    ];
    for (n, spec) in specs.into_iter().enumerate() {
        println!("{spec:?}");
        let (ours, theirs) = (Model::new(&cpu, spec), Model::new(&gpu, spec));
        // The second step's rows are elsewhere, over what the first has left in the cache.
        for (seed, lens) in [(7, &MIXED[..]), (8, &[(1, 65), (3, 130)])] {
            let rows = Rows::new(lens, seed + n as u64);
            ours.inputs(seed);
            theirs.inputs(seed);
            ours.compare(&rows, &ours.compute(&rows), &theirs.compute(&rows));
        }
    }
}

/// NULL is the default stream, as it is in the CUDA runtime.
#[test]
fn the_default_stream_is_one_as_well() {
    let Some([cpu, gpu]) = both() else { return };
    let (ours, theirs) = (Model::new(&cpu, PLAIN), Model::new(&gpu, PLAIN));
    let rows = Rows::new(&MIXED, 3);
    let expected = ours.compute(&rows);
    let none = ptr::null_mut();
    theirs.plan(&rows);
    theirs.upload(&rows, none);
    done(|e| theirs.append(none, e));
    done(|e| theirs.run(none, e));
    gpu.gpu().cuda.synchronize().expect("done");
    ours.compare(&rows, &expected, &theirs.answer());
}

/// The upload on one stream, the layer on another, ordered by the caller's events; and a second
/// attention on a third stream at the same time.
#[test]
fn streams_are_ordered_by_events() {
    let Some([cpu, gpu]) = both() else { return };
    let other = Spec { q_dtype: INFLIGHT_DTYPE_BF16, kv_dtype: INFLIGHT_DTYPE_BF16, ..PLAIN };
    let specs = [PLAIN, other];
    let (ours, theirs) =
        (specs.map(|spec| Model::new(&cpu, spec)), specs.map(|spec| Model::new(&gpu, spec)));
    let cuda = &gpu.gpu().cuda;
    let streams = [(); 3].map(|()| CudaStream::new(cuda).expect("a stream"));
    let [copies, work @ ..] = &streams;
    let done_with = [(); 2].map(|()| CudaEvent::new(cuda).expect("an event"));
    for seed in 1..4 {
        let rows = [Rows::new(&MIXED, seed), Rows::new(&[(1, 900), (7, 30)], seed)];
        for (ours, theirs) in ours.iter().zip(&theirs) {
            ours.inputs(seed);
            theirs.inputs(seed);
        }
        for (n, model) in theirs.iter().enumerate() {
            model.plan(&rows[n]);
            // Not before the last step's layer has read what is there.
            copies.wait(&done_with[n]).expect("queued");
            model.upload(&rows[n], copies.handle());
            let uploaded = CudaEvent::new(cuda).expect("an event");
            uploaded.record(copies).expect("queued");
            work[n].wait(&uploaded).expect("queued");
            done(|e| model.append(work[n].handle(), e));
            done(|e| model.run(work[n].handle(), e));
            done_with[n].record(&work[n]).expect("queued");
        }
        cuda.synchronize().expect("done");
        for (n, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            ours.compare(&rows[n], &ours.compute(&rows[n]), &theirs.answer());
        }
    }
}

#[test]
fn merged_states_are_the_processors() {
    let Some(both) = both() else { return };
    const HEADS: usize = 3;
    let (tokens, dim) = (5, 64);
    for dtype in [INFLIGHT_DTYPE_F16, INFLIGHT_DTYPE_BF16] {
        for num_states in [1, 2, INFLIGHT_MAX_STATES] {
            let results = both.each_ref().map(|on| {
                let memories: Vec<(Memory, Memory)> = (0..num_states)
                    .map(|n| {
                        let o = random(dtype, tokens * HEADS * dim, 20 + n as u64);
                        let mut lse = random(INFLIGHT_DTYPE_F32, tokens * HEADS, 40 + n as u64);
                        // No state has keys for the first row, and not all have for others.
                        for row in (0..tokens * HEADS).filter(|row| row % (n + 2) == 0) {
                            lse[4 * row..][..4].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
                        }
                        (on.memory(&o), on.memory(&lse))
                    })
                    .collect();
                let tensor = |memory: &Memory| inflight_tensor {
                    struct_size: size_of::<inflight_tensor>(),
                    data: memory.ptr(),
                    tokens: tokens as u64,
                    token_stride: (HEADS * dim) as i64,
                    head_stride: dim as i64,
                    heads: HEADS as u32,
                    head_dim: dim as u32,
                    dtype,
                    reserved: 0,
                };
                let states: Vec<_> = memories
                    .iter()
                    .map(|(o, lse)| inflight_merge_state {
                        o: at(tensor(o)),
                        lse: lse.ptr().cast(),
                    })
                    .collect();
                let o = on.memory(&vec![0xff; tokens * HEADS * dim * 2]);
                let lse = on.memory(&vec![0xff; tokens * HEADS * 4]);
                let args = inflight_merge_args {
                    states: states.as_ptr(),
                    num_states,
                    state_size: size_of::<inflight_merge_state>(),
                    o: at(tensor(&o)),
                    lse: lse.ptr().cast(),
                    ..inflight_merge_args::initial()
                };
                // SAFETY: all memory is of this function.
                done(|e| unsafe { inflight_merge(on.device, &raw const args, on.stream(), e) });
                (on.read(&o), on.read(&lse))
            });
            let [(ours, our_lse), (theirs, their_lse)] = results;
            let tolerance = if dtype == INFLIGHT_DTYPE_F16 { 1e-3 } else { 8e-3 };
            close(dtype, &ours, &theirs, tokens * HEADS * dim, tolerance);
            close(INFLIGHT_DTYPE_F32, &our_lse, &their_lse, tokens * HEADS, 1e-5);
        }
    }
}

/// Two layers whose pools on the host have another number of blocks.
#[test]
fn blocks_move_as_on_the_processor() {
    let Some(both) = both() else { return };
    let (layers, blocks, hosts, size, heads, dim) = (2, 8_usize, 5_usize, 4, 2, 64);
    let block = size * heads * dim;
    let op = |kind, src, dst| inflight_block_op { kind, src, dst };
    // Chains: what is copied, swapped out, in again, and copied on; and a block to itself.
    let lists = [
        vec![op(BlockOp::COPY, 1, 2), op(BlockOp::COPY, 2, 3), op(BlockOp::COPY, 5, 5)],
        vec![
            op(BlockOp::SWAP_OUT, 3, 0),
            op(BlockOp::SWAP_OUT, 4, 4),
            op(BlockOp::COPY, 6, 3),
            op(BlockOp::SWAP_IN, 0, 7),
            op(BlockOp::SWAP_IN, 1, 4),
            op(BlockOp::COPY, 7, 1),
        ],
        Vec::new(),
    ];
    let results = both.each_ref().map(|on: &On| {
        let pool = |blocks: usize, seed| random(INFLIGHT_DTYPE_BF16, blocks * block, seed);
        let cache = |k: &Memory, v: &Memory, blocks: usize| {
            let arrays = [k.ptr(), v.ptr()];
            let shape = [blocks, size, heads, dim];
            contiguous(INFLIGHT_LAYOUT_HND, INFLIGHT_DTYPE_BF16, arrays, shape)
        };
        let here: Vec<_> = (0..2 * layers).map(|n| on.memory(&pool(blocks, n + 1))).collect();
        let there: Vec<_> = (0..2 * layers).map(|n| on.host_memory(&pool(hosts, n + 9))).collect();
        let caches: Vec<_> = here.chunks(2).map(|kv| cache(&kv[0], &kv[1], blocks)).collect();
        let host: Vec<_> = there.chunks(2).map(|kv| cache(&kv[0], &kv[1], hosts)).collect();
        let mut mover = ptr::null_mut();
        // SAFETY: all is of this function.
        done(|e| unsafe {
            let (caches, host, layers) = (caches.as_ptr(), host.as_ptr(), layers as usize);
            inflight_block_mover_create(on.device, caches, host, layers, &raw mut mover, e)
        });
        for list in &lists {
            let (ops, len) = (list.as_ptr(), list.len());
            let size = size_of::<inflight_block_op>();
            // SAFETY: there are so many operations.
            done(|e| unsafe { inflight_block_mover_run(mover, ops, size, len, on.stream(), e) });
        }
        let all: Vec<_> = here.iter().chain(&there).map(|memory| on.read(memory)).collect();
        // SAFETY: it is not used any more.
        unsafe { inflight_block_mover_free(mover) };
        let before: Vec<_> = (0..2 * layers)
            .map(|n| pool(blocks, n + 1))
            .chain((0..2 * layers).map(|n| pool(hosts, n + 9)))
            .collect();
        (before, all)
    });
    let [(before, ours), (_, theirs)] = results;
    assert!(before.iter().zip(&ours).all(|(before, after)| before != after), "nothing moved");
    for (n, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert!(ours == theirs, "pool {n}");
    }
}
