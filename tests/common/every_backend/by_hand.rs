//! The definition by numbers that a person can check: of the oracle, the naive implementation and
//! the kernels alike.

use inflight::kernels::{AttentionConfig, DType};

use crate::attention::{Alibi, Case, Mask, MaskKind, Sinks, Spec, naive, oracle};
use crate::backend::{self, BY_HAND, TYPES};

/// What a case is made for: types, and query heads of its one KV head.
type Kind = ((DType, DType), usize);

/// Heads of 64 that have the same query; key `j` has logit `times[j] * unit` for every query,
/// before anything else; value `j` is `values[j]` throughout.
fn case((types, heads): Kind, q_len: usize, unit: f64, times: &[f32], values: &[f32]) -> Case {
    let mut config = AttentionConfig::new(heads, 1, 64, types.0);
    config.kv_dtype = types.1;
    config.scale = unit as f32;
    let mut spec = Spec::new(1, config, &[(q_len, times.len())]);
    spec.block_size = 2;
    let mut case = Case::new(&spec);
    if case.is_fp8() {
        (case.k_scale, case.v_scale) = (vec![1.0], vec![1.0]);
    }
    for d in 0..64 {
        let x = if d == 3 { 2.0 } else { 0.0 };
        (0..q_len * heads).for_each(|i| case.q.set(i / heads, i % heads, d, x));
        for (j, (&times, &value)) in times.iter().zip(values).enumerate() {
            case.set_k(0, j, 0, d, if d == 3 { times / 2.0 } else { 1.0 });
            case.set_v(0, j, 0, d, value);
        }
    }
    case
}

/// Output and LSE of each query.
fn expect(what: &str, make: &dyn Fn(Kind) -> Case, want: &[(f64, f64)]) {
    let mut compared = 0;
    for kind in TYPES.iter().flat_map(|&types| BY_HAND.iter().map(move |&heads| (types, heads))) {
        let mut case = make(kind);
        let reference = oracle(&case);
        let plain = naive(&case, None);
        let mut answers = vec![("oracle".to_string(), reference.o, reference.lse)];
        let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| f64::from(x)).collect() };
        answers.push(("naive".into(), wide(&plain.o), wide(&plain.lse)));
        for (who, answer) in backend::answers(&mut case, 0) {
            answers.push((who, wide(&answer.o), wide(&answer.lse)));
        }
        let heads = kind.1;
        // Of outputs and weights, which have the queries' type; the LSE has not.
        let rounding = match kind.0.0 {
            DType::Bf16 => 0.5_f64.powi(7),
            DType::F16 => 0.5_f64.powi(10),
            _ => 2e-6,
        };
        for (who, o, lse) in answers {
            for (at, lse) in lse.iter().enumerate() {
                let (want_o, want_lse) = want[at / heads];
                let near = |x: f64, y: f64, e: f64| x == y || (x - y).abs() <= e * (1.0 + y.abs());
                let o = &o[64 * at..][..64];
                let good =
                    o.iter().all(|&x| near(x, want_o, rounding)) && near(*lse, want_lse, 2e-6);
                let at = format!("query {}, head {}, {who}, {kind:?}", at / heads, at % heads);
                assert!(good, "{what}, {at}: {o:?} {lse}, not {want_o} {want_lse}");
                compared += 1;
            }
        }
    }
    println!("{what}: {compared} queries");
}

const NONE: (f64, f64) = (0.0, f64::NEG_INFINITY);

#[test]
fn two_keys() {
    // Weights 1 and 3: (1 * 1 + 3 * 5) / 4.
    let two = |kind: Kind, q_len: usize| case(kind, q_len, 3.0_f64.ln(), &[0.0, 1.0], &[1.0, 5.0]);
    expect("softmax", &|kind| two(kind, 1), &[(4.0, 4.0_f64.ln())]);
    // Query 0 is at position 0 and sees one key.
    expect("causal", &|kind| two(kind, 2), &[(1.0, 0.0), (4.0, 4.0_f64.ln())]);
    // Queries at positions -2, -1, 0, 1.
    let want = [NONE, NONE, (1.0, 0.0), (4.0, 4.0_f64.ln())];
    expect("before the first key", &|kind| two(kind, 4), &want);
    expect("no keys", &|kind| case(kind, 2, 1.0, &[], &[]), &[NONE, NONE]);

    let changed = |q_len: usize, change: fn(&mut AttentionConfig)| {
        move |kind: Kind| {
            let mut case = two(kind, q_len);
            change(&mut case.spec.config);
            case
        }
    };
    expect("not causal", &changed(2, |c| c.causal = false), &[(4.0, 4.0_f64.ln()); 2]);
    // Weights 1 and 9.
    expect("scale", &changed(1, |c| c.scale *= 2.0), &[(4.6, 10.0_f64.ln())]);
    let want = [(2.0, (4.0 / 3.0_f64).ln())];
    expect("a negative scale", &changed(1, |c| c.scale *= -1.0), &want);
    expect("no scale", &changed(1, |c| c.scale = 0.0), &[(3.0, 2.0_f64.ln())]);
}

#[test]
fn windows() {
    let equal = |left: u32, q_len: usize| {
        move |kind: Kind| {
            let mut case = case(kind, q_len, 1.0, &[0.0; 4], &[1.0, 2.0, 4.0, 8.0]);
            case.spec.config.window_left = Some(left);
            case
        }
    };
    let ln = f64::ln;
    expect("itself only", &equal(0, 4), &[(1.0, 0.0), (2.0, 0.0), (4.0, 0.0), (8.0, 0.0)]);
    let two = [(1.0, 0.0), (1.5, ln(2.0)), (3.0, ln(2.0)), (6.0, ln(2.0))];
    expect("itself and one before", &equal(1, 4), &two);
    expect("one of four", &equal(2, 1), &[(14.0 / 3.0, ln(3.0))]);
    let all = (15.0 / 4.0, ln(4.0));
    expect("all", &equal(3, 1), &[all]);
    expect("more than there are", &equal(u32::MAX, 1), &[all]);
    let ahead = |kind: Kind| {
        let mut case = equal(1, 4)(kind);
        case.spec.config.causal = false;
        case
    };
    let want = [all, all, (14.0 / 3.0, ln(3.0)), (6.0, ln(2.0))];
    expect("a window bounds the left only", &ahead, &want);
}

#[test]
fn soft_cap_then_alibi() {
    // tanh(atanh(1/2)) = 1/2: a cap of 2 ln 3 makes a logit of 2 ln 3 atanh(1/2) ln 3.
    let cap = 2.0 * 3.0_f64.ln();
    let logit = cap * 0.5_f64.atanh();
    let capped = |kind: Kind| {
        let mut case = case(kind, 1, logit, &[0.0, 1.0], &[1.0, 5.0]);
        case.spec.config.soft_cap = Some(cap as f32);
        case
    };
    expect("soft cap", &capped, &[(4.0, 4.0_f64.ln())]);
    // Key 0 is 1 away: its weight becomes 1/3, that of key 1 stays 3.
    let both = |kind: Kind| {
        let mut case = capped(kind);
        case.spec.alibi = Alibi::Usual;
        case.alibi = Some(vec![3.0_f32.ln(); kind.1]);
        case
    };
    let want = (1.0 / 3.0 + 15.0) / (10.0 / 3.0);
    expect("soft cap, then ALiBi", &both, &[(want, (10.0_f64 / 3.0).ln())]);

    // Queries at positions -1, 0 and 1, keys 0 and 1, all seen: distances 1, 2 and 0, 1 and 1, 0.
    let ahead = |kind: Kind| {
        let mut case = case(kind, 3, 1.0, &[0.0, 0.0], &[1.0, 4.0]);
        case.spec.config.causal = false;
        case.alibi = Some(vec![2.0_f32.ln(); kind.1]);
        case
    };
    let ln = f64::ln;
    let want = [(2.0, ln(0.75)), (2.0, ln(1.5)), (3.0, ln(1.5))];
    expect("ALiBi ahead and before the first key", &ahead, &want);
}

fn sunk(q_len: usize, sink: f32) -> impl Fn(Kind) -> Case {
    move |kind| {
        let mut case = case(kind, q_len, 3.0_f64.ln(), &[0.0, 1.0], &[1.0, 5.0]);
        case.sinks = Some(vec![sink; kind.1]);
        case.spec.sinks = Sinks::Usual;
        case
    }
}

#[test]
fn sinks() {
    let ln = f64::ln;
    // 4 more in the denominator: 16 / 8.
    expect("a sink", &sunk(1, 4.0_f32.ln()), &[(2.0, ln(8.0))]);
    expect("no sink", &sunk(1, f32::NEG_INFINITY), &[(4.0, ln(4.0))]);
    let e = 0.25_f64.exp();
    expect(
        "a sink alone",
        &sunk(3, 0.25),
        &[(0.0, 0.25), (1.0 / (1.0 + e), ln(1.0 + e)), (16.0 / (4.0 + e), ln(4.0 + e))],
    );
    expect("all sink", &sunk(1, 1e4), &[(0.0, 1e4)]);
    expect("a sink far below", &sunk(1, -1e30), &[(4.0, ln(4.0))]);
    expect("no sink and no key", &sunk(3, f32::NEG_INFINITY), &[NONE, (1.0, 0.0), (4.0, ln(4.0))]);
}

/// Sinks that are finite, but not if multiplied by anything above 1.
#[test]
fn the_lowest_sink() {
    let low = f64::from(f32::MIN);
    let want = [(0.0, low), (1.0, 0.0), (4.0, 4.0_f64.ln())];
    expect("the lowest sink", &sunk(3, f32::MIN), &want);
}

#[test]
fn the_highest_sink() {
    let high = f64::from(f32::MAX);
    expect("the highest sink", &sunk(3, f32::MAX), &[(0.0, high); 3]);
}

#[test]
fn masks() {
    let masked = |bits: &'static [u8], width: u32, causal: bool| {
        move |kind: Kind| {
            let values = [0.5, 1., 2., 4., 8., 16., 32., 64., 128., 256.];
            let mut case = case(kind, 2, 1.0, &[0.0; 10], &values);
            case.spec.config.causal = causal;
            case.spec.mask = MaskKind::Full;
            let (indptr, widths) = (vec![0, bits.len() as u32], vec![width]);
            case.mask = Some(Mask { bits: bits.to_vec(), indptr, widths });
            case
        }
    };
    let ln = f64::ln;
    // Two bytes a query; the least significant bit is key 0. What is beyond bit 9 is nothing.
    let want = [((0.5 + 256.0) / 2.0, ln(2.0)), (8.0, 0.0)];
    expect("bits", &masked(&[0x01, 0xfe, 0x10, 0xfc], 10, false), &want);
    // Width 3: bits are keys 7, 8, 9, one byte a query; keys 0 to 6 are seen: 63.5.
    let want = [((63.5 + 64.0 + 256.0) / 9.0, ln(9.0)), (63.5 / 7.0, ln(7.0))];
    expect("the last keys", &masked(&[0b101, 0xf8], 3, false), &want);
    expect("nothing", &masked(&[0, 0xfc, 0, 0], 10, false), &[NONE, NONE]);
    expect("width 0", &masked(&[], 0, false), &[(1023.0 / 20.0, ln(10.0)); 2]);
    let want = [(255.5 / 9.0, ln(9.0)), (1023.0 / 20.0, ln(10.0))];
    expect("causality holds", &masked(&[0xff; 4], 10, true), &want);
}

/// Heads `h` of 6 read KV head `h / 3`.
#[test]
fn groups_are_contiguous() {
    for &types in TYPES {
        let mut config = AttentionConfig::new(6, 2, 64, types.0);
        config.kv_dtype = types.1;
        let mut case = Case::new(&Spec::new(1, config, &[(1, 1)]));
        if case.is_fp8() {
            (case.k_scale, case.v_scale) = (vec![1.0], vec![1.0]);
        }
        for head in 0..2 {
            (0..64).for_each(|d| case.set_v(0, 0, head, d, 1.0 + head as f32));
        }
        let want: Vec<f32> = [1.0, 2.0].into_iter().flat_map(|x| vec![x; 3 * 64]).collect();
        assert_eq!(naive(&case, None).o, want);
        assert!(oracle(&case).o.iter().zip(&want).all(|(x, y)| *x == f64::from(*y)));
        for (who, answer) in backend::answers(&mut case, 0) {
            assert_eq!(answer.o, want, "{who}");
        }
    }
    println!("2 KV heads, 6 query heads");
}
