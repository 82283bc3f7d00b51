//! The definition by numbers that a person can check: of the oracle, the naive implementation and
//! the kernels alike.

use inflight::kernels::{AttentionConfig, DType};

use crate::attention::{Alibi, Case, Mask, MaskKind, Sinks, Spec, naive, oracle};
use crate::cpus;

/// One head of 8; key `j` has logit `logits[j]` for every query, before anything else; value `j`
/// is `values[j]` throughout.
fn case(q_len: usize, logits: &[f64], values: &[f32]) -> Case {
    let mut config = AttentionConfig::new(1, 1, 8, DType::F32);
    config.scale = 1.0;
    let mut spec = Spec::new(1, config, &[(q_len, logits.len())]);
    spec.block_size = 2;
    let mut case = Case::new(&spec);
    for d in 0..8 {
        (0..q_len).for_each(|i| case.q.set(i, 0, d, if d == 3 { 2.0 } else { 0.0 }));
        for (j, (&logit, &value)) in logits.iter().zip(values).enumerate() {
            case.set_k(0, j, 0, d, if d == 3 { logit as f32 / 2.0 } else { 1.0 });
            case.set_v(0, j, 0, d, value);
        }
    }
    case
}

/// Output and LSE of each query.
fn expect(what: &str, mut case: Case, want: &[(f64, f64)]) {
    let reference = oracle(&case);
    let plain = naive(&case, None);
    let mut answers = vec![("oracle".to_string(), reference.o, reference.lse)];
    let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| f64::from(x)).collect() };
    answers.push(("naive".into(), wide(&plain.o), wide(&plain.lse)));
    for cpu in cpus::each(0) {
        let answer = case.answer(cpu);
        answers.push((cpu.isa().to_string(), wide(&answer.o), wide(&answer.lse)));
    }
    for (who, o, lse) in answers {
        for (i, &(want_o, want_lse)) in want.iter().enumerate() {
            let near = |x: f64, y: f64| x == y || (x - y).abs() <= 2e-6 * (1.0 + y.abs());
            let good = o[8 * i..][..8].iter().all(|&x| near(x, want_o)) && near(lse[i], want_lse);
            let (o, lse) = (&o[8 * i..][..8], lse[i]);
            assert!(good, "{what}, query {i}, {who}: {o:?} {lse}, not {want_o} {want_lse}");
        }
    }
    println!("{what}: {} queries", want.len());
}

const NONE: (f64, f64) = (0.0, f64::NEG_INFINITY);

#[test]
fn two_keys() {
    let ln3 = 3.0_f64.ln();
    // Weights 1 and 3: (1 * 1 + 3 * 5) / 4.
    let two = |q_len: usize| case(q_len, &[0.0, ln3], &[1.0, 5.0]);
    expect("softmax", two(1), &[(4.0, 4.0_f64.ln())]);
    // Query 0 is at position 0 and sees one key.
    expect("causal", two(2), &[(1.0, 0.0), (4.0, 4.0_f64.ln())]);
    // Queries at positions -2, -1, 0, 1.
    expect("before the first key", two(4), &[NONE, NONE, (1.0, 0.0), (4.0, 4.0_f64.ln())]);
    expect("no keys", case(2, &[], &[]), &[NONE, NONE]);

    let mut full = two(2);
    full.spec.config.causal = false;
    expect("not causal", full, &[(4.0, 4.0_f64.ln()); 2]);

    let mut scaled = two(1);
    scaled.spec.config.scale = 2.0;
    // Weights 1 and 9.
    expect("scale", scaled, &[(4.6, 10.0_f64.ln())]);

    let mut scaled = two(1);
    scaled.spec.config.scale = -1.0;
    expect("a negative scale", scaled, &[(2.0, (4.0 / 3.0_f64).ln())]);
}

#[test]
fn windows() {
    let equal = |left: u32, q_len: usize| {
        let mut case = case(q_len, &[0.0; 4], &[1.0, 2.0, 4.0, 8.0]);
        case.spec.config.window_left = Some(left);
        case
    };
    let ln = f64::ln;
    expect("itself only", equal(0, 4), &[(1.0, 0.0), (2.0, 0.0), (4.0, 0.0), (8.0, 0.0)]);
    let two = [(1.0, 0.0), (1.5, ln(2.0)), (3.0, ln(2.0)), (6.0, ln(2.0))];
    expect("itself and one before", equal(1, 4), &two);
    expect("one of four", equal(2, 1), &[(14.0 / 3.0, ln(3.0))]);
    let all = (15.0 / 4.0, ln(4.0));
    expect("all", equal(3, 1), &[all]);
    expect("more than there are", equal(u32::MAX, 1), &[all]);
    let mut ahead = equal(1, 4);
    ahead.spec.config.causal = false;
    let want = [all, all, (14.0 / 3.0, ln(3.0)), (6.0, ln(2.0))];
    expect("a window bounds the left only", ahead, &want);
}

#[test]
fn soft_cap_then_alibi() {
    // tanh(atanh(1/2)) = 1/2: a cap of 2 ln 3 makes a logit of 2 ln 3 atanh(1/2) ln 3.
    let cap = 2.0 * 3.0_f64.ln();
    let logit = cap * 0.5_f64.atanh();
    let mut capped = case(1, &[0.0, logit], &[1.0, 5.0]);
    capped.spec.config.soft_cap = Some(cap as f32);
    expect("soft cap", capped.clone(), &[(4.0, 4.0_f64.ln())]);
    // Key 0 is 1 away: its weight becomes 1/3, that of key 1 stays 3.
    capped.spec.alibi = Alibi::Usual;
    capped.alibi = Some(vec![3.0_f32.ln()]);
    let want = (1.0 / 3.0 + 15.0) / (10.0 / 3.0);
    expect("soft cap, then ALiBi", capped, &[(want, (10.0_f64 / 3.0).ln())]);

    // Queries at positions -1 and 0, keys 0 and 1, all seen: distances 1, 2 and 0, 1.
    let mut ahead = case(3, &[0.0, 0.0], &[1.0, 4.0]);
    ahead.spec.config.causal = false;
    ahead.alibi = Some(vec![2.0_f32.ln()]);
    let ln = f64::ln;
    let want = [(2.0, ln(0.75)), (2.0, ln(1.5)), (3.0, ln(1.5))];
    expect("ALiBi ahead and before the first key", ahead, &want);
}

fn sunk(q_len: usize, sink: f32) -> Case {
    let mut case = case(q_len, &[0.0, 3.0_f64.ln()], &[1.0, 5.0]);
    case.sinks = Some(vec![sink]);
    case.spec.sinks = Sinks::Usual;
    case
}

#[test]
fn sinks() {
    let ln = f64::ln;
    // 4 more in the denominator: 16 / 8.
    expect("a sink", sunk(1, 4.0_f32.ln()), &[(2.0, ln(8.0))]);
    expect("no sink", sunk(1, f32::NEG_INFINITY), &[(4.0, ln(4.0))]);
    let e = 0.25_f64.exp();
    expect(
        "a sink alone",
        sunk(3, 0.25),
        &[(0.0, 0.25), (1.0 / (1.0 + e), ln(1.0 + e)), (16.0 / (4.0 + e), ln(4.0 + e))],
    );
    expect("all sink", sunk(1, 1e4), &[(0.0, 1e4)]);
    expect("a sink far below", sunk(1, -1e30), &[(4.0, ln(4.0))]);
    expect("no sink and no key", sunk(3, f32::NEG_INFINITY), &[NONE, (1.0, 0.0), (4.0, ln(4.0))]);
}

/// Sinks that are finite, but not if multiplied by anything above 1.
#[test]
fn the_lowest_sink() {
    let low = f64::from(f32::MIN);
    let want = [(0.0, low), (1.0, 0.0), (4.0, 4.0_f64.ln())];
    expect("the lowest sink", sunk(3, f32::MIN), &want);
}

#[test]
fn the_highest_sink() {
    let high = f64::from(f32::MAX);
    expect("the highest sink", sunk(3, f32::MAX), &[(0.0, high); 3]);
}

#[test]
fn masks() {
    let masked = |bits: &[u8], width: u32| {
        let mut case = case(2, &[0.0; 10], &[1., 2., 4., 8., 16., 32., 64., 128., 256., 512.]);
        case.spec.config.causal = false;
        case.spec.mask = MaskKind::Full;
        let widths = vec![width];
        case.mask = Some(Mask { bits: bits.to_vec(), indptr: vec![0, bits.len() as u32], widths });
        case
    };
    let ln = f64::ln;
    // Two bytes a query; the least significant bit is key 0. What is beyond bit 9 is nothing.
    let want = [((1.0 + 512.0) / 2.0, ln(2.0)), (16.0, 0.0)];
    expect("bits", masked(&[0x01, 0xfe, 0x10, 0xfc], 10), &want);
    // Width 3: bits are keys 7, 8, 9, one byte a query; keys 0 to 6 are seen: 127.
    let want = [((127.0 + 128.0 + 512.0) / 9.0, ln(9.0)), (127.0 / 7.0, ln(7.0))];
    expect("the last keys", masked(&[0b101, 0xf8], 3), &want);
    expect("nothing", masked(&[0, 0xfc, 0, 0], 10), &[NONE, NONE]);
    expect("width 0", masked(&[], 0), &[(1023.0 / 10.0, ln(10.0)); 2]);
    let mut causal = masked(&[0xff; 4], 10);
    causal.spec.config.causal = true;
    expect("causality holds", causal, &[(511.0 / 9.0, ln(9.0)), (1023.0 / 10.0, ln(10.0))]);
}

/// Heads `h` of 6 read KV head `h / 3`.
#[test]
fn groups_are_contiguous() {
    let config = AttentionConfig::new(6, 2, 8, DType::F32);
    let mut case = Case::new(&Spec::new(1, config, &[(1, 1)]));
    for head in 0..2 {
        (0..8).for_each(|d| case.set_v(0, 0, head, d, 1.0 + head as f32));
    }
    let want: Vec<f32> = [1.0, 2.0].into_iter().flat_map(|x| vec![x; 24]).collect();
    assert_eq!(naive(&case, None).o, want);
    assert!(oracle(&case).o.iter().zip(&want).all(|(x, y)| *x == f64::from(*y)));
    for cpu in cpus::each(0) {
        assert_eq!(case.answer(cpu).o, want, "{cpu:?}");
    }
    println!("2 KV heads, 6 query heads");
}
