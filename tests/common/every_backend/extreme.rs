//! Logits that are easily got wrong: huge, equal, tiny, and one above all.

use inflight::kernels::{AttentionConfig, DType};

use crate::attention::{Case, Reference, Scales, Sinks, Spec, judge, naive, oracle};
use crate::backend::{self, TYPES};
use crate::rng::Rng;

/// Keys and queries that a function of (key, element) gives, small whole numbers of any type.
fn case((q, kv): (DType, DType), k: &dyn Fn(usize, usize) -> f32, x: f32) -> Case {
    let mut config = AttentionConfig::new(4, 2, 64, q);
    config.kv_dtype = kv;
    config.scale = 1.0;
    let mut case = Case::new(&Spec::new(3, config, &[(3, 300), (1, 77), (40, 40)]));
    if case.is_fp8() {
        (case.k_scale, case.v_scale) = (vec![1.0], vec![1.0]);
    }
    let mut rng = Rng::new(5);
    for token in 0..case.num_tokens() * 4 {
        (0..64).for_each(|d| case.q.set(token / 4, token % 4, d, if d == 0 { x } else { 0.0 }));
    }
    for row in 0..3 {
        for j in 0..case.rows[row].1 {
            for i in 0..128 {
                case.set_k(row, j, i / 64, i % 64, k(j, i % 64));
                case.set_v(row, j, i / 64, i % 64, rng.below(9) as f32 - 4.0);
            }
        }
    }
    case
}

/// What is wrong with any of the results, all of it.
#[derive(Default)]
struct Checks {
    runs: usize,
    wrong: Vec<String>,
}

impl Checks {
    fn add(&mut self, what: &str, case: &mut Case) -> Reference {
        let (reference, plain) = (oracle(case), naive(case, None));
        let own = judge(case, &reference, &plain, &plain);
        own.unwrap_or_else(|why| panic!("{what}, naive: {why}"));
        for (who, found) in backend::answers(case, self.runs) {
            if let Err(why) = judge(case, &reference, &plain, &found) {
                self.wrong.push(format!("{what}, {who}: {why}"));
            }
            self.runs += 1;
        }
        reference
    }

    fn finish(self) {
        println!("{} runs", self.runs);
        assert!(self.wrong.is_empty(), "{} wrong:\n{}", self.wrong.len(), self.wrong.join("\n"));
    }
}

#[test]
fn logits_of_ten_thousand() {
    let mut checks = Checks::default();
    for &types in TYPES {
        // Element 0 of key j is (j mod 5 - 2) * 64, and the query's 128: up to +-16384, exact.
        let key = |j: usize, d: usize| if d == 0 { (j % 5) as f32 * 64.0 - 128.0 } else { 1.0 };
        for x in [128.0, -128.0] {
            let reference = checks.add(&format!("huge, {types:?}"), &mut case(types, &key, x));
            assert!(reference.lse.iter().any(|&lse| lse > 1.6e4));
        }
        // All of them far below 0: the largest is not 0.
        let key = |j: usize, d: usize| if d == 0 { -96.0 - (j % 2) as f32 } else { 1.0 };
        let reference = checks.add(&format!("low, {types:?}"), &mut case(types, &key, 128.0));
        assert!(reference.lse.iter().all(|&lse| lse < -1e4));
        let mut sunk = case(types, &key, 128.0);
        sunk.spec.sinks = Sinks::Usual;
        sunk.sinks = Some(vec![0.0, -12288.0, f32::NEG_INFINITY, -1e5]);
        checks.add(&format!("low, with sinks, {types:?}"), &mut sunk);
        let mut capped = case(types, &key, 128.0);
        capped.spec.config.soft_cap = Some(50.0);
        checks.add(&format!("low, capped, {types:?}"), &mut capped);
    }
    checks.finish();
}

/// K of all heads fills the space for a tile with few keys, fewer than a wide vector has lanes.
#[test]
fn many_kv_heads() {
    let mut checks = Checks::default();
    for (heads, head_dim) in [(5, 128), (8, 256), (12, 64), (16, 128), (32, 128)] {
        for (group, types) in TYPES.iter().enumerate().map(|(i, types)| (1 + i % 2, *types)) {
            let mut config = AttentionConfig::new(group * heads, heads, head_dim, types.0);
            config.kv_dtype = types.1;
            let scales = if types.1 == DType::Fp8E4m3 { Scales::PerHead } else { Scales::None };
            let rows = [(1, 200), (1, 47), (2, 33), (1, 9)];
            let spec = Spec { scales, ..Spec::new(7, config, &rows) };
            let name = format!("{heads} KV heads of {head_dim}, {types:?}");
            checks.add(&name, &mut Case::new(&spec));
        }
    }
    checks.finish();
}

#[test]
fn rising_and_falling_logits() {
    let mut checks = Checks::default();
    // Each key above, or below, all before it: every tile changes the largest.
    for &types in TYPES {
        for sign in [1.0, -1.0] {
            let key = |j: usize, d: usize| if d == 0 { sign * (j / 16) as f32 } else { 0.0 };
            checks.add(&format!("steps of {sign}, {types:?}"), &mut case(types, &key, 16.0));
        }
    }
    checks.finish();
}

#[test]
fn equal_logits() {
    let mut checks = Checks::default();
    for &types in TYPES {
        for value in [0.0, -0.0, 1.0, -7.0] {
            let key = |_: usize, d: usize| if d == 0 { value } else { 0.0 };
            let reference =
                checks.add(&format!("all {value}, {types:?}"), &mut case(types, &key, 4.0));
            let lse = 4.0 * f64::from(value) + 298.0_f64.ln();
            assert!((reference.lse[0] - lse).abs() < 1e-12);
        }
    }
    checks.finish();
}

#[test]
fn tiny_numbers() {
    let mut checks = Checks::default();
    for &types in TYPES {
        // Subnormal keys of the cache's type, -0.0 among them.
        let tiny = match types.1 {
            DType::F32 => f32::from_bits(3),
            DType::F16 => 2.0_f32.powi(-24),
            DType::Bf16 => f32::from_bits(3 << 16),
            DType::Fp8E4m3 => 2.0_f32.powi(-9),
        };
        let key = |j: usize, d: usize| match (j + d) % 3 {
            0 => tiny,
            1 => -0.0,
            _ => -tiny,
        };
        let mut small = case(types, &key, 1.0);
        for j in 0..300 {
            (0..64).for_each(|d| small.set_v(0, j, 0, d, if d % 2 == 0 { tiny } else { -0.0 }));
        }
        checks.add(&format!("subnormal, {types:?}"), &mut small);
    }
    checks.finish();
}

#[test]
fn one_outlier() {
    let mut checks = Checks::default();
    for &types in TYPES {
        for at in [0, 15, 16, 150, 297] {
            let key =
                |j: usize, d: usize| if d == 0 && j == at { 400.0 } else { (j % 3) as f32 - 1.0 };
            let reference =
                checks.add(&format!("key {at}, {types:?}"), &mut case(types, &key, 200.0));
            assert!(reference.lse[0] > 7e4);
        }
        // A value as large as the type has, of a key of some weight.
        let key = |j: usize, _: usize| (j % 3) as f32;
        let mut large = case(types, &key, 1.0);
        let most = match types.1 {
            DType::F16 => 65504.0,
            DType::Fp8E4m3 => 448.0,
            _ => 1e37,
        };
        (0..64).for_each(|d| large.set_v(0, 5, 1, d, most));
        checks.add(&format!("a value of {most}, {types:?}"), &mut large);
    }
    checks.finish();
}

/// Nothing finite makes a NaN or, where the result is in range, an infinity: no reference needed.
#[test]
fn finite_in_finite_out() {
    let (mut rng, mut runs) = (Rng::new(11), 0);
    for &types in TYPES {
        for _ in 0..6 {
            let most = if types.1 == DType::Fp8E4m3 { 448.0 } else { 6e4 };
            let exponents: Vec<f32> = (0..64 * 300).map(|_| rng.below(40) as f32 - 24.0).collect();
            let signs: Vec<bool> = (0..64 * 300).map(|_| rng.chance(50)).collect();
            let key = |j: usize, d: usize| {
                let size = 2.0_f32.powf(exponents[j * 64 + d]).min(most);
                if signs[j * 64 + d] { size } else { -size }
            };
            let mut wild = case(types, &key, 1000.0);
            wild.spec.config.soft_cap = rng.chance(30).then_some(20.0);
            wild.spec.config.window_left = rng.chance(30).then_some(10);
            for (who, found) in backend::answers(&mut wild, rng.below(4)) {
                assert!(found.o.iter().all(|x| x.abs() <= 4.01), "{who} {:?}", wild.spec);
                assert!(found.lse.iter().all(|x| x.is_finite()), "{who} {:?}", wild.spec);
                runs += 1;
            }
        }
    }
    println!("{runs} runs");
}
