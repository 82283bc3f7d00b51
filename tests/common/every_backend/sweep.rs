//! Random cases that cover every pair of values of every two parameters.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use inflight::kernels::{AttentionConfig, DType};

use crate::attention::{
    Alibi, Case, Layout, MaskKind, Poison, Scales, Sinks, Spec, Verdict, judge, naive, oracle,
};
use crate::backend::{self, CASES, DIMS, GROUPS, MOST_WORK, TOKEN_LAYOUTS, TYPES};
use crate::rng::Rng;

const KV_HEADS: [usize; 3] = [1, 2, 3];
const BLOCK_SIZES: [usize; 6] = [1, 3, 8, 16, 64, 128];
/// 0, 1, a block, one more, some, long.
const KV_LENS: usize = 6;
const Q_LENS: [usize; 7] = [0, 1, 2, 5, 17, 100, 300];
const WINDOWS: [Option<u32>; 5] = [None, Some(0), Some(13), Some(130), Some(100_000)];
const CAPS: [Option<f32>; 3] = [None, Some(30.0), Some(2.5)];
const SINKS: [Sinks; 4] = [Sinks::None, Sinks::Usual, Sinks::SomeNone, Sinks::Large];
const ALIBIS: [Alibi; 3] = [Alibi::None, Alibi::Usual, Alibi::Steep];
const MASKS: [MaskKind; 5] =
    [MaskKind::None, MaskKind::Tree, MaskKind::Full, MaskKind::Nothing, MaskKind::Any];
const SCALES: [Scales; 2] = [Scales::PerTensor, Scales::PerHead];
const LAYOUTS: [Layout; 6] =
    [Layout::Nhd, Layout::Hnd, Layout::Mixed, Layout::Interleaved, Layout::Halves, Layout::Padded];
const SPLITS: [Option<u32>; 3] = [None, Some(128), Some(2048)];
/// Factor of the logits, relative to the usual one.
const FACTORS: [f32; 4] = [1.0, 0.1, -0.7, 0.0];

/// How many values each parameter has.
const PARAMETERS: [usize; 18] = [
    DIMS.len(),
    GROUPS.len(),
    KV_HEADS.len(),
    BLOCK_SIZES.len(),
    KV_LENS,
    Q_LENS.len(),
    WINDOWS.len(),
    CAPS.len(),
    SINKS.len(),
    ALIBIS.len(),
    MASKS.len(),
    TYPES.len(),
    SCALES.len(),
    LAYOUTS.len(),
    TOKEN_LAYOUTS.len(),
    2,
    SPLITS.len(),
    FACTORS.len(),
];

type Choice = [usize; PARAMETERS.len()];

fn spec(choice: &Choice, rng: &mut Rng) -> Spec {
    let [dim, group, kv_heads, block_size, kv, q, window, cap, sinks, alibi, ..] = *choice;
    let [.., mask, types, scales, layout, tokens, causal, split, factor] = *choice;
    let (head_dim, heads) = (DIMS[dim], KV_HEADS[kv_heads]);
    let (q_dtype, kv_dtype) = TYPES[types];
    let mut config = AttentionConfig::new(GROUPS[group] * heads, heads, head_dim, q_dtype);
    config.kv_dtype = kv_dtype;
    config.causal = causal == 0;
    config.window_left = WINDOWS[window];
    config.soft_cap = CAPS[cap];
    config.scale *= FACTORS[factor];
    config.fixed_split = SPLITS[split];
    let bs = BLOCK_SIZES[block_size];
    let kv_len = match kv {
        0 => 0,
        1 => 1,
        2 => bs,
        3 => bs + 1,
        4 => rng.within(20, 400),
        _ => rng.within(1000, 3000),
    };
    let fp8 = kv_dtype == DType::Fp8E4m3;
    let mut spec = Spec {
        block_size: bs,
        layout: LAYOUTS[layout],
        shared: rng.chance(30),
        scales: if fp8 { SCALES[scales] } else { Scales::None },
        sinks: SINKS[sinks],
        alibi: ALIBIS[alibi],
        mask: MASKS[mask],
        poison: rng.pick(&[Poison::Nan, Poison::Stale]),
        q_layout: TOKEN_LAYOUTS[tokens],
        o_layout: rng.pick(TOKEN_LAYOUTS),
        peak: rng.pick(&[0.5, 1.0, 2.0, 4.0]),
        ..Spec::new(rng.next(), config, &[(Q_LENS[q], kv_len)])
    };
    // Company: decodes, chunks at the end of what is there, prompts, empty rows.
    for _ in 0..rng.below(6) {
        let kv_len = rng.below(300);
        let q_len = match rng.below(6) {
            0 => 0,
            1 => rng.within(2, 8),
            2 => kv_len,
            3 => kv_len / 2 + 1,
            _ => 1,
        };
        let at = rng.below(spec.rows.len() + 1);
        spec.rows.insert(at, rng.pick(&[(q_len, kv_len), (1, kv_len), (0, 0)]));
        if spec.work() > MOST_WORK {
            spec.rows.remove(at);
        }
    }
    spec
}

/// Pairs of values seen.
#[derive(Default)]
struct Pairs(BTreeSet<(usize, usize, usize, usize)>);

impl Pairs {
    fn of(choice: &Choice) -> impl Iterator<Item = (usize, usize, usize, usize)> {
        let n = choice.len();
        (0..n).flat_map(move |a| (a + 1..n).map(move |b| (a, choice[a], b, choice[b])))
    }

    fn new_in(&self, choice: &Choice) -> usize {
        Self::of(choice).filter(|pair| !self.0.contains(pair)).count()
    }

    fn all() -> usize {
        let n = PARAMETERS.len();
        let pairs = (0..n).flat_map(|a| (a + 1..n).map(move |b| PARAMETERS[a] * PARAMETERS[b]));
        pairs.sum()
    }
}

/// The case, among some at random, that shows the most pairs not seen before.
fn next(pairs: &mut Pairs, rng: &mut Rng) -> Spec {
    let mut best: Option<(usize, Choice, Spec)> = None;
    for _ in 0..100 {
        let choice = PARAMETERS.map(|n| rng.below(n));
        let news = pairs.new_in(&choice);
        if best.as_ref().is_some_and(|(most, ..)| *most >= news) {
            continue;
        }
        let spec = spec(&choice, rng);
        if spec.work() <= MOST_WORK {
            best = Some((news, choice, spec));
        }
    }
    let (_, choice, spec) = best.expect("most candidates are small enough");
    pairs.0.extend(Pairs::of(&choice));
    spec
}

/// Pairs that random cases of bounded size hardly ever have: a small case for the next of them.
fn next_rare(pairs: &mut Pairs, rng: &mut Rng) -> Option<Spec> {
    let n = PARAMETERS.len();
    let all = (0..n).flat_map(|a| (a + 1..n).map(move |b| (a, b))).flat_map(|(a, b)| {
        (0..PARAMETERS[a]).flat_map(move |x| (0..PARAMETERS[b]).map(move |y| (a, x, b, y)))
    });
    let (a, x, b, y) = all.into_iter().find(|pair| !pairs.0.contains(pair))?;
    let least = (0..200).map(|_| {
        let mut choice = PARAMETERS.map(|n| rng.below(n));
        // One head of the smallest dimension.
        choice[..3].fill(0);
        (choice[a], choice[b]) = (x, y);
        (choice, spec(&choice, rng))
    });
    let (choice, spec) = least.min_by_key(|(_, spec)| spec.work())?;
    pairs.0.extend(Pairs::of(&choice));
    Some(spec)
}

#[derive(Default)]
struct Tally {
    cases: usize,
    runs: BTreeMap<String, usize>,
    worst: Verdict,
    naive_share: f64,
    failures: Vec<String>,
}

impl Tally {
    fn check(&mut self, spec: &Spec, turn: usize) {
        self.cases += 1;

        let mut case = Case::new(spec);
        let (reference, plain) = (oracle(&case), naive(&case, None));
        // The naive result is under test as well: it keeps the oracle honest.
        let first = judge(&case, &reference, &plain, &plain);
        self.take("naive".into(), first);
        for (who, found) in backend::answers(&mut case, turn) {
            let verdict = judge(&case, &reference, &plain, &found);
            self.take(who, verdict);
        }
    }

    fn take(&mut self, who: String, verdict: Result<Verdict, String>) {
        match verdict {
            Ok(v) => {
                if who == "naive" {
                    self.naive_share = self.naive_share.max(v.share);
                    *self.runs.entry(who).or_default() += 1;
                    return;
                }
                let w = &mut self.worst;
                w.error = w.error.max(v.error);
                w.naive = w.naive.max(v.naive);
                w.lse_error = w.lse_error.max(v.lse_error);
                w.share = w.share.max(v.share);
                w.lse_share = w.lse_share.max(v.lse_share);
                w.cosine = w.cosine.max(v.cosine);
                w.empty += v.empty;
                *self.runs.entry(who).or_default() += 1;
            }
            Err(what) => self.failures.push(format!("{who}: {what}")),
        }
    }

    fn finish(&self) {
        println!("{} cases, {:?}", self.cases, self.runs);
        println!("worst kernel: {:?}", self.worst);
        println!("the naive implementation takes {} of its bounds", self.naive_share);
        let shown: Vec<_> = self.failures.iter().take(5).cloned().collect();
        assert!(shown.is_empty(), "{} failed:\n{}", self.failures.len(), shown.join("\n\n"));
    }
}

#[test]
fn every_pair_of_parameters() {
    if !backend::is_there() {
        return;
    }
    let (mut rng, mut pairs, mut tally) = (Rng::new(1), Pairs::default(), Tally::default());
    let start = Instant::now();
    // Once all pairs are there, more of everything.
    while tally.cases < CASES {
        let rare = tally.cases > CASES * 9 / 10;
        let rare = if rare { next_rare(&mut pairs, &mut rng) } else { None };
        let spec = rare.unwrap_or_else(|| next(&mut pairs, &mut rng));
        tally.check(&spec, tally.cases);
    }
    println!("{} of {} pairs, {:?}", pairs.0.len(), Pairs::all(), start.elapsed());
    tally.finish();
    assert_eq!(pairs.0.len(), Pairs::all(), "pairs of values that no case has");
    assert!(tally.worst.empty > 100, "queries that see no key");
}
