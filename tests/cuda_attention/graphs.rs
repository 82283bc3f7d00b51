//! A whole step as a CUDA graph, replayed while lengths grow.

use inflight::kernels::cuda::{Attention, StepBuffer};
use inflight::kernels::{AttentionConfig, DType, StepArrays, StepLimits};

use crate::attention::{Case, Mask, MaskKind, Spec, judge, naive, oracle};
use crate::gpu::{self, OnDevice};
use crate::rng::Rng;

#[test]
fn a_graph_is_replayed_with_new_lengths() {
    let Some(gpu) = gpu::gpu() else { return };
    let config = AttentionConfig::new(8, 2, 64, DType::Bf16);
    let limits = StepLimits {
        max_rows: 4,
        max_tokens: 64,
        max_blocks: 400,
        max_kv_len: 1024,
        max_mask_bytes: 0,
    };
    let mut attention = Attention::new(&gpu.cuda, config, limits).unwrap();
    let mut step = StepBuffer::new(&gpu.cuda, limits, &[&attention]).unwrap();
    // Across blocks, tiles and splits; a chunk of prefill joins, rows end.
    let steps: [&[(usize, usize)]; 7] = [
        &[(1, 15), (1, 63), (1, 1), (1, 300)],
        &[(1, 16), (1, 64), (1, 2), (1, 301)],
        &[(1, 17), (1, 65), (1, 3), (1, 302)],
        &[(1, 18), (40, 105), (1, 4), (1, 303)],
        &[(1, 19), (0, 0), (3, 7), (1, 700)],
        &[(1, 900)],
        &[(0, 0), (0, 0), (0, 0), (0, 0)],
    ];
    // Tensors stay where they are: a graph's launches have their addresses.
    let largest = Case::new(&Spec::new(0, config, &[(64, 1024), (1, 1024), (1, 1024), (1, 1024)]));
    let mut graph = None;
    for (n, rows) in steps.iter().enumerate() {
        // Every step's rows are among those of the largest case's memory.
        let case = largest.with_rows(rows);
        gpu.set_seed(n as u64);
        attention.plan(case.batch(), case.cache.layout.num_blocks, None).unwrap();
        let arrays = StepArrays::new(case.batch());
        step.upload(&gpu.stream, &arrays, &[&attention]).unwrap();
        let (graph, on_device) = graph.get_or_insert_with(|| {
            let on_device = OnDevice::new(&gpu, &largest);
            let captured = gpu
                .stream
                // SAFETY: all memory lives until the stream is done.
                .capture(|stream| unsafe { attention.run(stream, &step, 0, &on_device.args) })
                .expect("run can be captured");
            (captured, on_device)
        });
        on_device.poison(&gpu);
        // SAFETY: what was captured uses memory that lives, and nobody else uses it.
        unsafe { graph.launch(&gpu.stream) }.expect("a launch");
        gpu.stream.synchronize().unwrap();
        let all = on_device.answer_of(&gpu, &largest, case.num_tokens());
        judge(&case, &oracle(&case), &naive(&case, None), &all).unwrap();
        assert_eq!(gpu.reports(), Vec::<String>::new(), "step {n}");
    }
    println!("1 graph, {} steps", steps.len());
}

/// Trees of drafts: another mask each replay, of as many rows as there happen to be.
#[test]
fn a_graph_is_replayed_with_other_masks() {
    let Some(gpu) = gpu::gpu() else { return };
    let mut config = AttentionConfig::new(4, 1, 128, DType::F16);
    config.kv_dtype = DType::Fp8E4m3;
    let most = [(20, 600), (20, 600), (20, 600), (20, 600), (20, 600)];
    let largest = Case::new(&Spec { mask: MaskKind::Full, ..Spec::new(6, config, &most) });
    let limits = gpu::limits(&largest);
    let mut attention = Attention::new(&gpu.cuda, config, limits).unwrap();
    let mut step = StepBuffer::new(&gpu.cuda, limits, &[&attention]).unwrap();
    let on_device = OnDevice::new(&gpu, &largest);
    let (mut rng, mut graph) = (Rng::new(4), None);
    let mut lengths = [1, 15, 127, 300, 500];
    for replay in 0..12 {
        // Rows grow by what they keep of a draft, come and go; at times there is none.
        let rows: Vec<_> = lengths
            .iter_mut()
            .take(if replay % 5 == 4 { 0 } else { rng.within(1, 5) })
            .map(|len| {
                let q_len = rng.pick(&[0, 1, 2, 5, 8, 20]);
                *len = (*len + rng.within(1, 40)).min(600);
                (q_len, *len)
            })
            .collect();
        let mut case = largest.with_rows(&rows);
        case.spec.mask = rng.pick(&[MaskKind::None, MaskKind::Tree, MaskKind::Any, MaskKind::Full]);
        case.mask = Mask::new(case.spec.mask, &rows, &mut rng);
        gpu.set_seed(replay);
        attention.plan(case.batch(), case.cache.layout.num_blocks, case.kernel_mask()).unwrap();
        let arrays = StepArrays::new(case.batch());
        step.upload(&gpu.stream, &arrays, &[&attention]).unwrap();
        let graph = graph.get_or_insert_with(|| {
            let run = |stream: &inflight::device::cuda::CudaStream| {
                // SAFETY: all memory lives until the stream is done.
                unsafe { attention.run(stream, &step, 0, &on_device.args) }
            };
            gpu.stream.capture(run).expect("run can be captured")
        });
        on_device.poison(&gpu);
        // SAFETY: what was captured uses memory that lives, and nobody else uses it.
        unsafe { graph.launch(&gpu.stream) }.expect("a launch");
        let all = on_device.answer_of(&gpu, &largest, case.num_tokens());
        judge(&case, &oracle(&case), &naive(&case, None), &all).unwrap();
        assert_eq!(gpu.reports(), Vec::<String>::new(), "replay {replay}");
    }
}

/// Uploads and launches by turns, none waited for: each replay reads the step before it.
#[test]
fn replays_and_uploads_are_in_order() {
    let Some(gpu) = gpu::gpu() else { return };
    let config = AttentionConfig::new(8, 2, 64, DType::Bf16);
    let largest = Case::new(&Spec::new(7, config, &[(30, 600); 3]));
    let limits = gpu::limits(&largest);
    let mut attention = Attention::new(&gpu.cuda, config, limits).unwrap();
    let mut step = StepBuffer::new(&gpu.cuda, limits, &[&attention]).unwrap();
    // Results of a replay are copied away before the next, in the same queue.
    let mut rng = Rng::new(5);
    let (mut queued, mut graph) = (Vec::new(), None);
    let on_device = OnDevice::new(&gpu, &largest);
    for _ in 0..12 {
        let rows: Vec<_> = (0..rng.below(4))
            .map(|_| (rng.pick(&[0, 1, 1, 2, 30]), rng.pick(&[0, 1, 16, 17, 128, 129, 600])))
            .collect();
        let case = largest.with_rows(&rows);
        let copy = OnDevice::new(&gpu, &largest);
        queued.push((case, copy));
    }
    for (n, (case, copy)) in queued.iter().enumerate() {
        attention.plan(case.batch(), case.cache.layout.num_blocks, None).unwrap();
        let arrays = StepArrays::new(case.batch());
        step.upload(&gpu.stream, &arrays, &[&attention]).unwrap();
        let graph = graph.get_or_insert_with(|| {
            let run = |stream: &inflight::device::cuda::CudaStream| {
                // SAFETY: all memory lives until the stream is done.
                unsafe { attention.run(stream, &step, 0, &on_device.args) }
            };
            gpu.stream.capture(run).expect("run can be captured")
        });
        gpu.set_seed(n as u64);
        on_device.poison(&gpu);
        // SAFETY: what was captured uses memory that lives, and nobody else uses it.
        unsafe { graph.launch(&gpu.stream) }.expect("a launch");
        copy.copy_outputs(&gpu, &on_device);
    }
    for (n, (case, copy)) in queued.iter().enumerate() {
        let all = copy.answer_of(&gpu, &largest, case.num_tokens());
        let verdict = judge(case, &oracle(case), &naive(case, None), &all);
        verdict.unwrap_or_else(|why| panic!("replay {n}: {why}"));
    }
    assert_eq!(gpu.reports(), Vec::<String>::new());
}
