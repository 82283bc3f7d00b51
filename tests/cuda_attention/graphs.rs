//! A whole step as a CUDA graph, replayed while lengths grow.

use inflight::kernels::cuda::{Attention, StepArrays, StepBuffer, StepLimits};
use inflight::kernels::{AttentionConfig, DType};

use crate::attention::{Case, Spec, judge, naive, oracle};
use crate::gpu::{self, OnDevice};

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
        let arrays =
            StepArrays { batch: case.batch(), slot_mapping: &[], positions: &[], tokens: &[] };
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
