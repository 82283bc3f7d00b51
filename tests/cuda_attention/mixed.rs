//! Rows of both kinds in one launch.

use inflight::kernels::cuda::{Attention, Fusion, StepBuffer};
use inflight::kernels::{AttentionConfig, DType, StepArrays, StepLimits};

use crate::attention::{Alibi, Case, MaskKind, Sinks, Spec, judge, naive, oracle};
use crate::gpu::{self, Gpu, OnDevice, TYPES};

const MODES: [Fusion; 3] = [Fusion::Auto, Fusion::Always, Fusion::Never];
/// Decode, speculative tokens, chunks and an empty row; both kinds in more than one part.
const ROWS: [(usize, usize); 6] = [(1, 900), (40, 400), (2, 300), (0, 5), (90, 130), (1, 17)];

fn config(dim: usize, (q, kv): (DType, DType)) -> AttentionConfig {
    AttentionConfig { kv_dtype: kv, ..AttentionConfig::new(8, 2, dim, q) }
}

/// Whether two blocks of decode, the larger ones, fit a multiprocessor.
fn two_fit(gpu: &Gpu, attention: &Attention) -> bool {
    let [decode, _] = shares(attention);
    attention.is_fused() || decode >= 2 * gpu.cuda.info().multiprocessors as usize
}

fn shares(attention: &Attention) -> [usize; 2] {
    attention.parts().map(|plan| plan.share_indptr().len() - 1)
}

fn check(case: &Case, found: &crate::attention::Answer) {
    judge(case, &oracle(case), &naive(case, None), found).unwrap();
}

/// Every kernel for rows of both kinds, plain and general, and the two that it stands for.
#[test]
fn all_ways_compute_a_mixed_step() {
    let Some(gpu) = gpu::gpu() else { return };
    let mut fused = 0;
    for (n, &types) in TYPES.iter().enumerate() {
        for (m, dim) in [64, 96, 128].into_iter().enumerate() {
            let general = (n + m) % 2 == 1;
            let mut config = config(dim, types);
            config.soft_cap = general.then_some(30.0);
            let case = Case::new(&Spec {
                sinks: Sinks::Usual,
                alibi: if general { Alibi::Usual } else { Alibi::None },
                mask: if general { MaskKind::Tree } else { MaskKind::None },
                ..Spec::new((10 * n + m) as u64, config, &ROWS)
            });
            for mode in MODES {
                let mut attention = gpu::attention(&gpu, &case, mode);
                check(&case, &gpu::answer_with(&gpu, &case, &mut attention));
                let expected = match mode {
                    Fusion::Auto => two_fit(&gpu, &attention),
                    Fusion::Always => true,
                    Fusion::Never => false,
                };
                assert_eq!(attention.is_fused(), expected, "{types:?} {dim} {mode:?}");
                fused += usize::from(attention.is_fused());
            }
            // The other kernel of the file.
            config.soft_cap = None;
            let plain = Case::new(&Spec::new((50 * n + m) as u64, config, &ROWS));
            let mut attention = gpu::attention(&gpu, &plain, Fusion::Always);
            check(&plain, &gpu::answer_with(&gpu, &plain, &mut attention));
        }
    }
    assert_eq!(gpu.reports(), Vec::<String>::new());
    println!("{fused} mixed steps in one launch");
}

/// Both sides write states and merge them while the other does: neither finds the other's.
#[test]
fn sides_merge_at_the_same_time() {
    let Some(gpu) = gpu::gpu() else { return };
    let mut both = 0;
    for (seed, rows) in [
        // Costs alike, then much of either.
        (1, &[(1, 2500), (1, 1900), (2, 2000), (48, 700)][..]),
        (2, &[(1, 2000), (1, 900), (64, 1100), (70, 900)]),
        (3, &[(1, 6000), (1, 5000), (33, 1500)]),
    ] {
        let case = Case::new(&Spec::new(seed, config(64, TYPES[3]), rows));
        let mut attention = gpu::attention(&gpu, &case, Fusion::Always);
        let first = gpu::answer_with(&gpu, &case, &mut attention);
        check(&case, &first);
        let merges = attention.parts().map(|plan| plan.merges().len());
        both += usize::from(!merges.contains(&0));
        println!("seed {seed}: shares {:?}, merges {merges:?}", shares(&attention));
        // Other orders of blocks, the same counters.
        for turn in 0..3 {
            gpu.set_seed(10 * seed + turn);
            let again = gpu::answer_with(&gpu, &case, &mut attention).bits();
            assert!(again == first.bits(), "seed {seed}, turn {turn}");
        }
    }
    assert!(both > 0, "there is no step in which both sides split");
    assert_eq!(gpu.reports(), Vec::<String>::new());
}

/// What [`Fusion::Auto`] chooses, and which rows have a side of their own.
#[test]
fn one_launch_where_neither_side_is_small() {
    let Some(gpu) = gpu::gpu() else { return };
    let limits = StepLimits {
        max_rows: 64,
        max_tokens: 4096,
        max_blocks: 40_000,
        max_kv_len: 8192,
        max_mask_bytes: 0,
    };
    let fused = |fusion, rows: &[(usize, usize)]| {
        let case = Case::new(&Spec { shared: true, ..Spec::new(1, config(64, TYPES[3]), rows) });
        let mut attention =
            Attention::with_fusion(&gpu.cuda, case.spec.config, limits, fusion).unwrap();
        attention.plan(case.batch(), case.cache.layout.num_blocks, None).unwrap();
        (attention.is_fused(), shares(&attention))
    };
    let decodes = [(1, 800); 4];
    let (_, own) = fused(Fusion::Never, &decodes);
    for rows in [&decodes[..], &[(300, 900)], &[(0, 0)]] {
        assert_eq!(fused(Fusion::Auto, rows), (false, own));
        assert_eq!(fused(Fusion::Always, rows), (false, own));
    }
    let both = [(1, 3000), (1, 3000), (64, 300)];
    assert_eq!(fused(Fusion::Never, &both), (false, own));
    // As many blocks together as fit: no more than of either alone.
    let (is_fused, [decode, prefill]) = fused(Fusion::Always, &both);
    let all = decode + prefill;
    assert!(is_fused && all <= own[0].min(own[1]), "{decode} {prefill} of {own:?}");
    let fit = all >= 2 * gpu.cuda.info().multiprocessors as usize;
    let expected = if fit { (true, [decode, prefill]) } else { (false, own) };
    assert_eq!(fused(Fusion::Auto, &both), expected);
    let few = [(1, 2), (1024, 1024)];
    assert_eq!(fused(Fusion::Auto, &few), (false, own));
    assert_eq!(fused(Fusion::Always, &few), (true, [1, all - 1]));
}

/// With fixed splits one launch gives the bits that two give.
#[test]
fn one_launch_and_two_give_the_same_bits() {
    let Some(gpu) = gpu::gpu() else { return };
    let mut merges = 0;
    for (n, &types) in TYPES.iter().enumerate() {
        for (m, dim) in [64, 112, 128].into_iter().enumerate() {
            let mut config = config(dim, types);
            config.fixed_split = Some([128, 256][m % 2]);
            config.window_left = (m == 1).then_some(300);
            let case = Case::new(&Spec::new((n + 10 * m) as u64, config, &ROWS));
            let bits = [Fusion::Never, Fusion::Always].map(|mode| {
                let mut attention = gpu::attention(&gpu, &case, mode);
                gpu.set_seed(n as u64);
                let bits = gpu::answer_with(&gpu, &case, &mut attention).bits();
                assert_eq!(attention.is_fused(), mode == Fusion::Always);
                merges += attention.parts().iter().map(|plan| plan.merges().len()).sum::<usize>();
                bits
            });
            assert!(bits[0] == bits[1], "{types:?} {dim} differ");
        }
    }
    println!("{merges} merges");
    assert!(merges > 0, "nothing was merged");
}

/// Steps of all kinds, each longer than its like before.
const STEPS: [&[(usize, usize)]; 8] = [
    &[(1, 15), (1, 63), (1, 1), (1, 900)],
    &[(1, 1300), (40, 105), (1, 64), (1, 901)],
    &[(60, 300), (0, 0), (0, 0), (0, 0)],
    &[(1, 1301), (48, 700), (3, 70), (1, 902)],
    &[(1, 1900), (1, 1999), (2, 1700), (1, 2000)],
    &[(1, 18), (55, 2000), (1, 4), (0, 0)],
    &[(0, 0), (0, 0), (0, 0), (0, 0)],
    &[(1, 2000)],
];

/// Replays a graph captured with the step `captured` over all steps.
fn replay(gpu: &Gpu, config: AttentionConfig, fusion: Fusion, captured: usize) {
    let limits = StepLimits {
        max_rows: 4,
        max_tokens: 64,
        max_blocks: 600,
        max_kv_len: 2000,
        max_mask_bytes: 0,
    };
    let mut attention = Attention::with_fusion(&gpu.cuda, config, limits, fusion).unwrap();
    let mut step = StepBuffer::new(&gpu.cuda, limits, &[&attention]).unwrap();
    let rows = [(64, 2000), (1, 2000), (1, 2000), (1, 2000)];
    let largest = Case::new(&Spec::new(captured as u64, config, &rows));
    let on_device = OnDevice::new(gpu, &largest);
    let mut graph = None;
    let mut fused = Vec::new();
    for n in std::iter::once(captured).chain(0..STEPS.len()) {
        let case = largest.with_rows(STEPS[n]);
        gpu.set_seed(n as u64);
        attention.plan(case.batch(), case.cache.layout.num_blocks, None).unwrap();
        fused.push(attention.is_fused());
        let arrays = StepArrays::new(case.batch());
        step.upload(&gpu.stream, &arrays, &[&attention]).unwrap();
        let graph = graph.get_or_insert_with(|| {
            gpu.stream
                // SAFETY: all memory lives until the stream is done.
                .capture(|stream| unsafe { attention.run(stream, &step, 0, &on_device.args) })
                .expect("run can be captured")
        });
        on_device.poison(gpu);
        // SAFETY: what was captured uses memory that lives, and nobody else uses it.
        unsafe { graph.launch(&gpu.stream) }.expect("a launch");
        gpu.stream.synchronize().unwrap();
        let all = on_device.answer_of(gpu, &largest, case.num_tokens());
        let judged = judge(&case, &oracle(&case), &naive(&case, None), &all);
        judged.unwrap_or_else(|what| panic!("{fusion:?}, captured {captured}, step {n}: {what}"));
        assert_eq!(gpu.reports(), Vec::<String>::new(), "step {n}");
    }
    let mixed = [1, 3, 5].map(|n| fused[n + 1]);
    assert!(fusion == Fusion::Auto || mixed == [true; 3], "{fused:?}");
    assert!(!fused[1] && !fused[3], "{fused:?}");
    println!("{fusion:?}, captured with step {captured}, planned for one launch: {fused:?}");
}

/// A graph computes any later step, whatever was queued when it was captured and however the step's
/// plans are divided. The two kernels have more blocks together than fit the device.
#[test]
fn a_graph_of_one_launch_or_two_computes_every_step() {
    let Some(gpu) = gpu::gpu() else { return };
    let (bf16, e4m3) = (config(64, TYPES[1]), config(64, TYPES[3]));
    replay(&gpu, bf16, Fusion::Always, 1);
    replay(&gpu, e4m3, Fusion::Always, 0);
    replay(&gpu, e4m3, Fusion::Auto, 0);
    replay(&gpu, e4m3, Fusion::Auto, 3);
}
