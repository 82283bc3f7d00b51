//! Random cases over everything that kernels distinguish.

use inflight::kernels::AttentionConfig;
use inflight::kernels::cuda::Fusion;

use crate::attention::{
    Alibi, Case, Layout, MaskKind, Poison, Scales, Sinks, Spec, TokenLayout, Verdict, judge, naive,
    oracle,
};
use crate::backend::DIMS;
use crate::gpu::{self, TYPES};
use crate::rng::Rng;

const GROUPS: [usize; 8] = [1, 3, 4, 5, 7, 8, 16, 32];
const BLOCK_SIZES: [usize; 6] = [1, 3, 8, 16, 64, 128];
const LAYOUTS: [Layout; 6] =
    [Layout::Nhd, Layout::Hnd, Layout::Mixed, Layout::Interleaved, Layout::Halves, Layout::Padded];
const TOKEN_LAYOUTS: [TokenLayout; 3] =
    [TokenLayout::Contiguous, TokenLayout::Packed, TokenLayout::HeadMajor];

/// The `n`-th case: dimensions and types in turn, so that every kernel runs, the rest at random.
fn spec(n: usize, most: usize, rng: &mut Rng) -> Spec {
    let (dim, (q, kv)) = (DIMS[n % DIMS.len()], TYPES[n / DIMS.len() % TYPES.len()]);
    let heads = rng.within(1, 3);
    let mut config = AttentionConfig::new(rng.pick(&GROUPS) * heads, heads, dim, q);
    config.kv_dtype = kv;
    let general = rng.chance(50);
    let mut extra = |percent| general && rng.chance(percent);
    let (window, cap, alibi, sinks, masked) =
        (extra(40), extra(40), extra(40), extra(50), extra(40));
    config.causal = rng.chance(75);
    config.window_left = window.then(|| rng.pick(&[0, 13, 130, 100_000]));
    config.soft_cap = cap.then(|| rng.pick(&[2.5, 30.0]));
    config.scale *= rng.pick(&[1.0, 1.0, 1.0, 0.1, -0.7, 0.0]);
    config.fixed_split = rng.chance(25).then(|| rng.pick(&[128, 256]));
    let block_size = rng.pick(&BLOCK_SIZES);
    let mut spec = Spec {
        block_size,
        layout: rng.pick(&LAYOUTS),
        shared: rng.chance(30),
        scales: match kv == q {
            true => Scales::None,
            false => rng.pick(&[Scales::PerTensor, Scales::PerHead]),
        },
        sinks: match sinks {
            true => rng.pick(&[Sinks::Usual, Sinks::SomeNone, Sinks::Large]),
            false => Sinks::None,
        },
        alibi: if alibi { rng.pick(&[Alibi::Usual, Alibi::Steep]) } else { Alibi::None },
        mask: match masked {
            true => rng.pick(&[MaskKind::Tree, MaskKind::Full, MaskKind::Nothing, MaskKind::Any]),
            false => MaskKind::None,
        },
        poison: rng.pick(&[Poison::Nan, Poison::Stale]),
        q_layout: rng.pick(&TOKEN_LAYOUTS),
        o_layout: rng.pick(&TOKEN_LAYOUTS),
        peak: rng.pick(&[0.5, 1.0, 2.0, 4.0]),
        ..Spec::new(rng.next(), config, &[])
    };
    for _ in 0..rng.within(1, 5) {
        let kv_len = match rng.below(5) {
            0 => rng.below(2),
            1 => block_size * rng.within(1, 3) + rng.below(2),
            2 => rng.within(300, 900),
            _ => rng.below(300),
        };
        let q_len = match rng.below(6) {
            0 => rng.within(2, 8),
            1 => kv_len.min(200),
            2 => rng.within(1, 150),
            3 => 0,
            _ => 1,
        };
        spec.rows.push((q_len, kv_len));
        if spec.work() > most {
            spec.rows.pop();
        }
    }
    if spec.rows.is_empty() {
        spec.rows.push((1, block_size + 1));
    }
    spec
}

/// One launch or two: all ways where a case has rows of both kinds.
fn modes(case: &Case) -> &'static [Fusion] {
    let config = &case.spec.config;
    let few = 16 * config.num_kv_heads / config.num_q_heads;
    let has = |kind: fn(usize, usize) -> bool| {
        case.rows.iter().any(|&(q_len, _)| q_len > 0 && kind(q_len, few))
    };
    if has(|q_len, few| q_len <= few) && has(|q_len, few| q_len > few) {
        &[Fusion::Auto, Fusion::Always, Fusion::Never]
    } else {
        &[Fusion::Auto]
    }
}

#[test]
fn every_kernel_over_random_cases() {
    let Some(gpu) = gpu::gpu() else { return };
    let cases = std::env::var("INFLIGHT_CASES").ok().and_then(|n| n.parse().ok());
    let cases = cases.unwrap_or(if gpu.is_checking() { 28 } else { 84 });
    let most = if gpu.is_checking() { 400_000 } else { 3_000_000 };
    let (mut rng, mut worst, mut failures) = (Rng::new(4), Verdict::default(), Vec::new());
    let mut fused = 0;
    for n in 0..cases {
        let spec = spec(n, most, &mut rng);
        let case = Case::new(&spec);
        gpu.set_seed(n as u64);
        let expected = (oracle(&case), naive(&case, None));
        for &fusion in modes(&case) {
            let mut attention = gpu::attention(&gpu, &case, fusion);
            let found = gpu::answer_with(&gpu, &case, &mut attention);
            fused += usize::from(attention.is_fused());
            match judge(&case, &expected.0, &expected.1, &found) {
                Ok(v) => {
                    worst.share = worst.share.max(v.share);
                    worst.lse_share = worst.lse_share.max(v.lse_share);
                    worst.cosine = worst.cosine.max(v.cosine);
                    worst.empty += v.empty;
                }
                Err(what) => failures.push(format!("{fusion:?}: {what}")),
            }
        }
        let reports = gpu.reports();
        if !reports.is_empty() {
            failures.push(format!("{spec:?}\n{}", reports.join("\n")));
        }
    }
    println!("{cases} cases on {}, {fused} in one launch, worst: {worst:?}", gpu.cuda.info().name);
    let shown = failures.iter().take(3).cloned().collect::<Vec<_>>().join("\n\n");
    assert!(failures.is_empty(), "{} of {cases} failed:\n{shown}", failures.len());
    assert!(worst.empty > 0, "queries that see no key");
    assert!(fused > 0, "no mixed step");
}

/// Each of the kernels by itself: decode or prefill, by dimension and types, with rules or without.
#[test]
fn each_kernel_once() {
    let Some(gpu) = gpu::gpu() else { return };
    let (mut kernels, mut reports) = (0, Vec::new());
    for (n, (q, kv)) in TYPES.into_iter().enumerate() {
        for &dim in DIMS {
            for rows in [[(1, 150), (2, 33)], [(70, 150), (20, 20)]] {
                for general in [false, true] {
                    let mut config = AttentionConfig::new(4, 2, dim, q);
                    config.kv_dtype = kv;
                    config.soft_cap = general.then_some(10.0);
                    let spec = Spec::new((dim + n) as u64, config, &rows);
                    let case = Case::new(&spec);
                    let found = gpu::answer(&gpu, &case);
                    judge(&case, &oracle(&case), &naive(&case, None), &found).unwrap();
                    reports.extend(gpu.reports());
                    kernels += 1;
                }
            }
        }
    }
    println!("{kernels} kernels and dimensions");
    assert_eq!(reports, Vec::<String>::new());
}

/// The same plan twice gives the same bits, whatever the order of blocks: counters are 0 again,
/// and merges go by the order of keys.
#[test]
fn repeated_calls_are_bit_identical() {
    let Some(gpu) = gpu::gpu() else { return };
    let mut config = AttentionConfig::new(8, 2, 64, inflight::kernels::DType::Bf16);
    let mut merges = 0;
    for (seed, split) in [(1, None), (2, Some(128))] {
        config.fixed_split = split;
        let case = Case::new(&Spec::new(seed, config, &[(1, 700), (3, 300), (40, 400), (0, 5)]));
        let mut attention =
            inflight::kernels::cuda::Attention::new(&gpu.cuda, config, gpu::limits(&case)).unwrap();
        let first = gpu::answer_with(&gpu, &case, &mut attention).bits();
        merges += attention.parts().iter().map(|plan| plan.merges().len()).sum::<usize>();
        for turn in 0..4 {
            gpu.set_seed(100 + turn);
            let again = gpu::answer_with(&gpu, &case, &mut attention).bits();
            assert!(first == again, "turn {turn} differs");
        }
    }
    println!("{merges} merges, each the same 5 times");
    assert!(merges > 0, "nothing was merged");
    assert_eq!(gpu.reports(), Vec::<String>::new());
}

/// With fixed splits a row's bits are its own, whatever else is in the batch.
#[test]
fn a_row_does_not_depend_on_its_batch() {
    let Some(gpu) = gpu::gpu() else { return };
    let mut config = AttentionConfig::new(4, 1, 128, inflight::kernels::DType::F16);
    config.fixed_split = Some(128);
    let case = Case::new(&Spec::new(9, config, &[(1, 500), (2, 260), (30, 130), (1, 17)]));
    let whole = gpu::answer(&gpu, &case);
    let heads = config.num_q_heads * config.head_dim;
    for row in 0..case.rows.len() {
        let alone = gpu::answer(&gpu, &case.select(&[row]));
        let tokens = case.tokens(row);
        let bits = |o: &[f32]| o.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let here = &whole.o[tokens.start * heads..tokens.end * heads];
        assert!(bits(here) == bits(&alone.o), "row {row} differs alone");
    }
}
