//! The comparison finds what it is there to find: defects seeded into the naive implementation.

use inflight::kernels::{AttentionConfig, DType};

use crate::attention::{Alibi, Case, Defect, MaskKind, Scales, Sinks, Spec, judge, naive, oracle};
use crate::backend::TYPES;

/// Everything at once, in rows of every kind.
fn busy(seed: u64, q_dtype: DType, kv_dtype: DType) -> Spec {
    let mut config = AttentionConfig::new(6, 2, 64, q_dtype);
    config.kv_dtype = kv_dtype;
    config.window_left = Some(40);
    config.soft_cap = Some(4.0);
    let rows = [(3, 64), (20, 20), (1, 100), (5, 80), (6, 3)];
    Spec {
        sinks: Sinks::Usual,
        alibi: Alibi::Usual,
        mask: MaskKind::Any,
        scales: if kv_dtype == q_dtype { Scales::None } else { Scales::PerHead },
        ..Spec::new(seed, config, &rows)
    }
}

/// Whether a case can tell at all.
fn applies(defect: Defect, q: DType, kv: DType) -> bool {
    match defect {
        Defect::FirstScaleForAll | Defect::KScaleForV => kv == DType::Fp8E4m3,
        Defect::SumsIn16Bits | Defect::LogitsIn16Bits => q != DType::F32,
        _ => true,
    }
}

#[test]
fn every_defect_is_found() {
    let (mut found, mut missed) = (0, Vec::new());
    for &(q, kv) in TYPES {
        let all = busy(7, q, kv);
        // The same with one thing less: causality shows without a window, an empty row without
        // sinks, and what a query sees of a long row in long rows.
        let mut plain = all.clone();
        (plain.mask, plain.sinks, plain.config.window_left) = (MaskKind::None, Sinks::None, None);
        let mut ahead = all.clone();
        (ahead.config.causal, ahead.config.window_left) = (false, None);
        let long = Spec {
            rows: vec![(2, 2000), (1, 700)],
            alibi: Alibi::None,
            sinks: Sinks::None,
            mask: MaskKind::None,
            config: AttentionConfig { window_left: None, soft_cap: None, ..all.config },
            ..all.clone()
        };
        let cases: Vec<_> = [all, plain, ahead, long].iter().map(Case::new).collect();
        let truths: Vec<_> = cases.iter().map(|case| (oracle(case), naive(case, None))).collect();
        for (case, (reference, plain)) in cases.iter().zip(&truths) {
            let verdict = judge(case, reference, plain, plain);
            println!("{q} over {kv}: {:?}", verdict.expect("nothing is wrong with it"));
        }
        for defect in Defect::ALL.into_iter().filter(|&defect| applies(defect, q, kv)) {
            let caught = cases.iter().zip(&truths).filter(|(case, (reference, plain))| {
                judge(case, reference, plain, &naive(case, Some(defect))).is_err()
            });
            match caught.count() {
                0 => missed.push(format!("{defect:?}, {q} over {kv}")),
                _ => found += 1,
            }
        }
    }
    println!("{found} defects found");
    assert!(missed.is_empty(), "not found: {missed:#?}");
}
