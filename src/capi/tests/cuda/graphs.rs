//! A step in a CUDA graph, replayed for others.

use std::ptr;

use super::super::super::ffi::Versioned;
use super::super::super::merge::*;
use super::super::super::rope::*;
use super::super::super::tensor::*;
use super::super::{at, done, refused};
use super::both;
use super::data::*;
use super::model::*;
use crate::capi::status::inflight_status;

/// As docs/c-abi.md has it: create, plan, upload, capture append, run and merge; then plan, upload
/// and launch for each step.
#[test]
fn a_graph_computes_other_steps() {
    let Some([cpu, gpu]) = both() else { return };
    let spec = Spec {
        q_dtype: INFLIGHT_DTYPE_BF16,
        kv_dtype: INFLIGHT_DTYPE_FP8_E4M3,
        num_scales: HEADS as u32,
        rope: INFLIGHT_ROPE_PAIRS_HALF,
        general: true,
        ..PLAIN
    };
    let steps: [&[(usize, usize)]; 6] = [
        &[(1, 300), (30, 30), (1, 17)],
        &[(1, 301), (1, 31), (1, 18)],
        &[(1, 900), (TOKENS - 1, 200)],
        &[(1, 16)],
        &[(0, 0), (0, 0)],
        &[(2, 65), (5, 129), (1, 700), (0, 0), (40, 41)],
    ];
    // Whatever step it was captured with.
    for first in [0, 1, 4] {
        let (ours, theirs) = (Model::new(&cpu, spec), Model::new(&gpu, spec));
        let stream = &gpu.gpu().stream;
        let rows = Rows::new(steps[first], 1);
        theirs.plan(&rows);
        theirs.upload(&rows, stream.handle());
        // The queries' own state alone: merging is the identity, up to rounding.
        let run = theirs.run_args();
        let state = inflight_merge_state { o: run.o, lse: run.lse };
        let merge = inflight_merge_args {
            states: &raw const state,
            num_states: 1,
            state_size: size_of::<inflight_merge_state>(),
            o: run.o,
            ..inflight_merge_args::initial()
        };
        let before = gpu.launches();
        let mut graph = stream
            .capture(|stream| {
                let stream = stream.handle();
                done(|e| theirs.append(stream, e));
                done(|e| theirs.run(stream, e));
                // SAFETY: all memory lives as long as the graph.
                done(|e| unsafe { inflight_merge(gpu.device, &raw const merge, stream, e) });
                Ok(())
            })
            .expect("a graph");
        assert_eq!(gpu.launches(), before, "captured, not run");
        for (n, lens) in steps.into_iter().enumerate() {
            let rows = Rows::new(lens, 2 + n as u64);
            ours.inputs(n as u64);
            theirs.inputs(n as u64);
            theirs.plan(&rows);
            theirs.upload(&rows, stream.handle());
            // SAFETY: what was captured lives, and is in no other use.
            unsafe { graph.launch(stream) }.expect("launched");
            let mut theirs = theirs.answer();
            let ours_then = ours.compute(&rows);
            // The merge takes all tokens of the tensors; those behind the step's had LSEs of NaN.
            let len = rows.tokens() * spec.q_heads as usize * spec.dim * 2;
            theirs.o[len..].fill(0xff);
            ours.compare(&rows, &ours_then, &theirs);
        }
    }
}

#[test]
fn what_differs_between_steps_is_not_for_a_graph() {
    let Some([_, gpu]) = both() else { return };
    use super::super::super::blocks::*;
    use super::super::super::step_buffer::*;
    use super::super::super::step_view::inflight_block_op;
    let model = Model::new(&gpu, PLAIN);
    let rows = Rows::new(&[(4, 40), (1, 90)], 1);
    model.plan(&rows);
    model.upload(&rows, gpu.stream());
    let mut mover = ptr::null_mut();
    let none = ptr::null();
    // SAFETY: all is of this function.
    done(|e| unsafe {
        let cache = &raw const *model.cache;
        inflight_block_mover_create(gpu.device, cache, none, 1, &raw mut mover, e)
    });
    let (batch, op) = (rows.batch(), inflight_block_op { kind: 0, src: 1, dst: 2 });
    let argument = (inflight_status::InvalidArgument, "stream".to_owned());
    let stream = &gpu.gpu().stream;
    let before = gpu.launches();
    let mut graph = stream
        .capture(|stream| {
            let stream = stream.handle();
            // SAFETY: all is of this function.
            let upload = refused(|e| unsafe {
                inflight_step_buffer_upload(model.step, &raw const batch, stream, e)
            });
            // SAFETY: as above.
            let moved = refused(|e| unsafe {
                inflight_block_mover_run(mover, &raw const op, 12, 1, stream, e)
            });
            assert_eq!([upload, moved], [argument.clone(), argument.clone()]);
            // Tensors of fewer tokens than a later step may have.
            let mut short = model.run_args();
            // SAFETY: the model keeps its queries.
            let queries = unsafe { *short.q };
            short.q = at(inflight_tensor { tokens: queries.tokens - 1, ..queries });
            let (attention, step, args) = (model.attention, model.step, &raw const short);
            // SAFETY: as above.
            let short = refused(|e| unsafe {
                super::super::super::attention_run::inflight_attention_run(
                    attention, step, args, stream, e,
                )
            });
            assert_eq!(short, (inflight_status::InvalidArgument, "q".to_owned()));
            // The capture is none the worse for it.
            done(|e| model.append(stream, e));
            Ok(())
        })
        .expect("a graph");
    assert_eq!(gpu.launches(), before);
    // SAFETY: what was captured lives.
    unsafe { graph.launch(stream) }.expect("launched");
    if gpu.gpu().emulator.is_some() {
        assert_eq!(gpu.launches(), before + 1, "the append alone");
    }
    // SAFETY: it is not used any more.
    unsafe { inflight_block_mover_free(mover) };
}
