//! Shapes in which every barrier, wait and counter of the kernels matters, in several orders of
//! threads, blocks and copies: rings that wrap, parts that follow each other within a block, merges
//! in one launch and in the next. `scripts/mutants` removes each of them and runs these.

use inflight::device::cuda::Cuda;
use inflight::kernels::cuda::Fusion;
use inflight::kernels::{AttentionConfig, DType};

use crate::attention::{Case, Spec, judge, naive, oracle};
use crate::gpu;

const SEEDS: u64 = 4;

/// Each case with the plan's `side` (0 decode, 1 prefill) alone, or (2) both in one launch, again and again by the same
/// `Attention`: in order first, then in other orders, which must make no difference.
fn in_any_order(kv: DType, dim: usize, side: usize, cases: &[&[(usize, usize)]]) {
    let Some(mut gpu) = gpu::gpu() else { return };
    // Where two blocks fit a multiprocessor, of half as many: a block has as many parts then.
    let halved = gpu.emulator().filter(|_| gpu.cuda.info().compute_capability.0 >= 9);
    if let Some(emulator) = halved {
        emulator.set_device(0, gpu.cuda.info().multiprocessors.div_ceil(2));
        gpu.cuda = Cuda::new(0).expect("the same device");
    }
    let config = AttentionConfig { kv_dtype: kv, ..AttentionConfig::new(8, 2, dim, DType::Bf16) };
    let (mut merges, mut most_parts) = (0, 0);
    for (n, rows) in cases.iter().enumerate() {
        let case = Case::new(&Spec::new(n as u64, config, rows));
        let (exact, plain) = (oracle(&case), naive(&case, None));
        let mut attention = gpu::attention(&gpu, &case, Fusion::Always);
        let mut first = None;
        for seed in 0..SEEDS {
            gpu.set_seed(seed);
            let found = gpu::answer_with(&gpu, &case, &mut attention);
            let (reports, verdict) = (gpu.reports(), judge(&case, &exact, &plain, &found));
            let what = format!("case {n}, seed {seed}: {:?}", verdict.err());
            assert!(reports.is_empty(), "{what}\n{}", reports.join("\n"));
            assert!(what.ends_with("None"), "{what}");
            let bits = found.bits();
            assert!(*first.get_or_insert_with(|| bits.clone()) == bits, "{what}: bits differ");
        }
        for (nth, plan) in attention.parts().into_iter().enumerate() {
            let has_parts = !plan.parts().is_empty();
            assert_eq!(has_parts, side == 2 || side == nth, "case {n} has other rows");
            merges += plan.merges().len();
            let parts = plan.share_indptr().windows(2).map(|w| w[1] - w[0]).max();
            most_parts = most_parts.max(parts.unwrap_or(0));
        }
        assert_eq!(attention.is_fused(), side == 2, "case {n}");
    }
    if let Some(emulator) = halved {
        emulator.set_device(0, 0);
    }
    println!("{merges} merges, up to {most_parts} parts a block");
    assert!(merges > 1, "hardly anything is merged");
    assert!(most_parts > if side == 0 { 12 } else { 2 }, "no block has many parts");
}

/// Long rows, which are split and wrap a warp's stages; many short ones, more of them a block than
/// its warps look up at once; rows without keys among them.
const DECODE: [&[(usize, usize)]; 2] = [&[(1, 1700), (2, 900), (1, 5), (1, 1200)], &SHORT];
const SHORT: [(usize, usize); 56] = {
    let mut rows = [(1, 0); 56];
    let mut n = 0;
    while n < rows.len() {
        rows[n] = (1 + n % 3 / 2, n * 29 % 90);
        n += 1;
    }
    rows
};

/// Tiles of queries that follow each other in a block, split ones among them, and more tiles of
/// keys than the ring holds.
const PREFILL: [&[(usize, usize)]; 2] = [
    &[(33, 700), (5, 530)],
    &[(40, 40), (64, 64), (20, 90), (33, 33), (70, 150), (9, 9), (31, 200), (32, 65), (8, 8)],
];

/// Both at once.
const MIXED: [&[(usize, usize)]; 1] =
    [&[(1, 1700), (33, 700), (1, 900), (1, 5), (40, 40), (9, 9), (1, 60)]];

#[test]
fn mixed_same_d128() {
    in_any_order(DType::Bf16, 128, 2, &MIXED);
}

#[test]
fn decode_same_d128() {
    in_any_order(DType::Bf16, 128, 0, &DECODE);
}

#[test]
fn decode_e4m3_d128() {
    in_any_order(DType::Fp8E4m3, 128, 0, &DECODE);
}

/// One stage, and queries in shared memory.
#[test]
fn decode_same_d256() {
    in_any_order(DType::Bf16, 256, 0, &DECODE);
}

#[test]
fn prefill_same_d128() {
    in_any_order(DType::Bf16, 128, 1, &PREFILL);
}

#[test]
fn prefill_e4m3_d128() {
    in_any_order(DType::Fp8E4m3, 128, 1, &PREFILL);
}

/// Eight warps, and queries in registers.
#[test]
fn prefill_same_d256() {
    in_any_order(DType::Bf16, 256, 1, &PREFILL);
}
