//! Plans against the mask they divide: every visible key once, nothing else, in even shares.
//!
//! Random batches are planned under random configurations. Small ones are compared with the mask
//! query by query and key by key; large ones by their rectangles. What a share costs, what a plan
//! may hold and which keys a query sees are computed here anew, the slow way.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Debug;
use std::ops::Range;

use inflight::plan::{Costs, Extent, Merge, Part, Plan, PlanBounds, PlanConfig};
use inflight::{Error, Result};
use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};

#[derive(Clone, Debug)]
struct Case {
    config: PlanConfig,
    rows: Vec<Extent>,
}

/// How large random cases are.
#[derive(Clone, Copy)]
struct Size {
    rows: usize,
    q_len: u32,
    kv_len: u32,
}

const SMALL: Size = Size { rows: 4, q_len: 12, kv_len: 40 };
const LARGE: Size = Size { rows: 40, q_len: 300, kv_len: 5000 };

fn extents(size: Size) -> impl Strategy<Value = Vec<Extent>> {
    let q_len = prop_oneof![Just(1), 0..=size.q_len.min(9), 0..=size.q_len];
    let kv_len = prop_oneof![0..=size.q_len, 0..=size.kv_len];
    let extent = (q_len, kv_len).prop_map(|(q_len, kv_len)| Extent { q_len, kv_len });
    prop::collection::vec(extent, 0..=size.rows)
}

fn configs(size: Size) -> impl Strategy<Value = PlanConfig> {
    let granularity = if size.kv_len < 100 { 1..=8_u32 } else { 1..=128 };
    let window = prop_oneof![Just(0), 0..=size.kv_len / 50, 0..=size.kv_len, Just(u32::MAX)];
    let shape = (1..=64_u32, 1..=8_u32, 0..=8_u32, prop_oneof![1..=16_u32, 16..=128_u32]);
    let mask = (any::<bool>(), prop::option::of(window));
    let split_q = prop_oneof![Just(u32::MAX), 0..12_u32];
    let splits = (granularity, prop::option::of(1..=16_u32), split_q);
    let costs = (prop_oneof![Just(0), 0..200_u32, 0..20_000_u32], 0..4_u32, 0..4_u32);
    (shape, mask, splits, costs).prop_map(
        |(shape, mask, (kv_granularity, split, split_q), costs)| {
            let (shares, heads, max_packed_q, q_tile) = shape;
            let (tile, key, query_key) = costs;
            PlanConfig {
                shares,
                heads,
                max_packed_q,
                q_tile,
                kv_granularity,
                causal: mask.0,
                window_left: mask.1,
                fixed_split: split.map(|times| times * kv_granularity),
                split_q,
                costs: Costs { tile, key: key.max(u32::from(query_key == 0)), query_key },
            }
        },
    )
}

fn cases(size: Size) -> impl Strategy<Value = Case> {
    (configs(size), extents(size)).prop_map(|(config, mut rows)| {
        // Tiles of one query and parts of one key: fewer of them are as good.
        let longest = config.fixed_split.map_or(u32::MAX, |split| split * 64);
        for row in &mut rows {
            row.q_len = row.q_len.min(config.q_tile * 20);
            row.kv_len = row.kv_len.min(longest);
        }
        Case { config, rows }
    })
}

/// Checks `count` cases: the same ones every time. A failing one is made as small as possible.
fn for_all<T: Debug>(count: u32, of: impl Strategy<Value = T>, check: impl Fn(T)) {
    let config =
        ProptestConfig { cases: count, failure_persistence: None, ..ProptestConfig::default() };
    let rng = prop::test_runner::TestRng::deterministic_rng(config.rng_algorithm);
    let result = TestRunner::new_with_rng(config, rng).run(&of, |case| {
        check(case);
        Ok(())
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(why, case)) => panic!("{why}\n{case:#?}"),
        Err(error) => panic!("{error}"),
    }
}

fn plan(case: &Case) -> Plan {
    let mut plan = Plan::default();
    plan.make(&case.config, case.rows.iter().copied()).expect("a sound configuration");
    plan
}

/// The keys a query sees, by the mask's definition.
fn sees(config: &PlanConfig, row: Extent, query: u32, key: u32) -> bool {
    let position = i64::from(row.kv_len) - i64::from(row.q_len) + i64::from(query);
    let (key, window) = (i64::from(key), config.window_left.map(i64::from));
    key < i64::from(row.kv_len)
        && (!config.causal || key <= position)
        && window.is_none_or(|window| key >= position - window)
}

/// The keys from the first that the first query sees to the last that the last query sees.
fn visible(config: &PlanConfig, row: Extent, queries: Range<u32>) -> Range<u32> {
    let start = (0..row.kv_len).find(|&key| sees(config, row, queries.start, key));
    let end = (0..row.kv_len).rfind(|&key| sees(config, row, queries.end - 1, key));
    match (start, end) {
        (Some(start), Some(end)) => start..end + 1,
        // Queries before key 0: a range of the others begins there.
        (None, Some(end)) => 0..end + 1,
        (_, None) => 0..0,
    }
}

fn cost(config: &PlanConfig, part: &Part) -> u64 {
    let Costs { tile, key, query_key } = config.costs;
    let keys = u64::from(part.num_heads) * u64::from(part.kv_end - part.kv_start);
    u64::from(tile) + keys * (u64::from(key) + u64::from(query_key) * u64::from(part.q_len))
}

/// The parts of each tile, found by their numbers.
fn tiles(plan: &Plan) -> Vec<&[Part]> {
    let mut tiles = Vec::new();
    let mut at = 0;
    while let Some(part) = plan.parts().get(at) {
        let count = plan.merges().get(part.merge as usize).map_or(1, |merge| merge.count);
        tiles.push(&plan.parts()[at..at + count as usize]);
        at += count as usize;
    }
    tiles
}

#[derive(Debug, Default)]
struct Counts {
    cases: usize,
    parts: usize,
    tiles: usize,
    split: usize,
    empty: usize,
    states: usize,
    idle_shares: usize,
}

#[test]
fn every_visible_key_is_computed_once() {
    let counts = RefCell::new((0, 0, 0));
    for_all(4000, cases(SMALL), |case| {
        let plan = plan(&case);
        let mut counts = counts.borrow_mut();
        for (number, &row) in (0..).zip(&case.rows) {
            let mut computed = HashMap::new();
            for part in plan.parts().iter().filter(|part| part.row == number) {
                for head in part.head..part.head + part.num_heads {
                    for query in part.q_start..part.q_start + part.q_len {
                        // So that queries without a key are written.
                        *computed.entry((head, query, None)).or_insert(0) += 1;
                        for key in part.kv_start..part.kv_end {
                            *computed.entry((head, query, Some(key))).or_insert(0) += 1;
                        }
                    }
                }
            }
            for head in 0..case.config.heads {
                for query in 0..row.q_len {
                    assert!(computed.remove(&(head, query, None)).is_some_and(|n: u32| n >= 1));
                    for key in (0..row.kv_len).filter(|&key| sees(&case.config, row, query, key)) {
                        assert_eq!(computed.get(&(head, query, Some(key))), Some(&1));
                        counts.0 += 1;
                    }
                }
            }
            // What is left the mask hides; a row reads nothing it does not have.
            let inside = |&(head, query, key): &(u32, u32, Option<u32>)| {
                head < case.config.heads && query < row.q_len && key < Some(row.kv_len)
            };
            assert!(computed.keys().all(inside));
        }
        (counts.1, counts.2) = (counts.1 + plan.parts().len(), counts.2 + plan.merges().len());
    });
    let (pairs, parts, merges) = counts.into_inner();
    println!("{pairs} pairs of query and key in {parts} parts, {merges} merges");
    assert!(pairs > 1_000_000 && merges > 4_000);
}

/// Checks the cuts of a tile.
fn check_tile(config: &PlanConfig, row: Extent, tile: &[Part]) {
    let (first, last) = (tile[0], tile[tile.len() - 1]);
    let keys = visible(config, row, first.q_start..first.q_start + first.q_len);
    assert_eq!(first.kv_start..last.kv_end, keys, "all of these and no other");
    assert!(tile.windows(2).all(|two| two[0].kv_end == two[1].kv_start), "in order, no gap");
    let lengths = || tile.iter().map(|part| part.kv_end - part.kv_start);
    let cuts: Vec<u32> = tile[1..].iter().map(|part| part.kv_start).collect();
    match config.fixed_split {
        Some(_) if row.q_len > config.split_q => assert!(cuts.is_empty(), "too many queries"),
        Some(split) => {
            let wanted = (0..keys.end).step_by(split as usize).filter(|&key| key > keys.start);
            assert!(wanted.eq(cuts));
        }
        None if tile.len() > 1 => {
            assert!(cuts.iter().all(|cut| cut % config.kv_granularity == 0));
            assert!(lengths().all(|keys| keys > 0 && 2 * keys >= config.kv_granularity));
        }
        None => {}
    }
    assert!(tile.len() == 1 || lengths().all(|keys| keys > 0));
}

#[test]
fn parts_are_rectangles_that_fill_their_tiles_and_merges_name_them() {
    let counts = RefCell::new(Counts::default());
    for_all(2000, cases(LARGE), |Case { config, rows }| {
        let plan = plan(&Case { config, rows: rows.clone() });
        let (tiles, mut counts) = (tiles(&plan), counts.borrow_mut());
        let mut written: Vec<Vec<u32>> =
            rows.iter().map(|row| vec![0; (row.q_len * config.heads) as usize]).collect();
        let (mut states, mut merges, mut first_part) = (0, 0, 0);
        for tile in &tiles {
            let Part { row, head, num_heads, q_start, q_len, .. } = tile[0];
            let extent = rows[row as usize];
            assert_eq!(
                num_heads,
                if extent.q_len <= config.max_packed_q { config.heads } else { 1 }
            );
            assert!(q_len >= 1 && q_len <= config.q_tile);
            for head in head..head + num_heads {
                let start = (head * extent.q_len + q_start) as usize;
                written[row as usize][start..start + q_len as usize]
                    .iter_mut()
                    .for_each(|n| *n += 1);
            }
            check_tile(&config, extent, tile);
            let count = tile.len() as u32;
            if count > 1 {
                let partial = states;
                let merge =
                    Merge { row, head, num_heads, q_start, q_len, partial, count, first_part };
                assert_eq!(plan.merges()[merges as usize], merge);
            }
            for part in *tile {
                let numbers = if count > 1 { (states, merges) } else { (Part::WHOLE, Part::WHOLE) };
                let same = Part { kv_start: part.kv_start, kv_end: part.kv_end, ..tile[0] };
                assert_eq!(*part, Part { partial: numbers.0, merge: numbers.1, ..same });
                states += if count > 1 { q_len * num_heads } else { 0 };
            }
            merges += u32::from(count > 1);
            first_part += count;
            counts.empty += usize::from(tile[0].kv_start == tile[0].kv_end);
        }
        assert!(written.iter().flatten().all(|&n| n == 1), "each query of each head, once");
        assert_eq!((plan.num_states(), plan.merges().len()), (states, merges as usize));

        let ends = plan.share_indptr();
        assert_eq!((ends.len(), ends[0]), (config.shares as usize + 1, 0));
        assert!(ends.is_sorted() && ends[ends.len() - 1] as usize == plan.parts().len());
        let shares = (0..config.shares as usize).map(|share| plan.share(share));
        counts.idle_shares += shares.clone().filter(|share| share.is_empty()).count();
        assert!(shares.flatten().eq(plan.parts()));
        counts.cases += 1;
        counts.parts += plan.parts().len();
        counts.tiles += tiles.len();
        counts.split += merges as usize;
        counts.states += states as usize;
    });
    let counts = counts.into_inner();
    println!("{counts:?}");
    assert!(counts.split > 50_000 && counts.empty > 5_000 && counts.idle_shares > 1000);
}

/// What a share may cost beyond an even one.
fn slack(config: &PlanConfig, tiles: &[&[Part]]) -> u64 {
    if config.fixed_split.is_some() {
        return tiles.iter().copied().flatten().map(|part| cost(config, part)).max().unwrap_or(0);
    }
    let of_tile = |tile: &&[Part]| {
        let whole = Part { kv_end: tile[tile.len() - 1].kv_end, ..tile[0] };
        // Keys between two cuts: the granularity, and at either end as much as is too short for a part.
        let alignment = config.kv_granularity;
        let begins_between = !whole.kv_start.is_multiple_of(alignment);
        let too_short = (alignment - 1) / 2;
        let ends = if begins_between { 2 * too_short } else { too_short };
        let keys = (alignment + ends).min(whole.kv_end - whole.kv_start);
        cost(config, &Part { kv_start: 0, kv_end: keys, ..whole }) + u64::from(config.costs.tile)
    };
    tiles.iter().map(of_tile).max().unwrap_or(0)
}

#[test]
fn shares_are_even() {
    let counts = RefCell::new((0, 0, 0.0_f64));
    for_all(3000, cases(LARGE), |case| {
        let plan = plan(&case);
        let config = &case.config;
        let tiles = tiles(&plan);
        let parts: u64 = plan.parts().iter().map(|part| cost(config, part)).sum();
        // Each tile once: what cutting adds is part of what a share may cost more.
        let split: u64 = tiles.iter().map(|tile| tile.len() as u64 - 1).sum();
        let again = if config.fixed_split.is_some() { 0 } else { split };
        let even = (parts - again * u64::from(config.costs.tile)).div_ceil(config.shares.into());
        let slack = slack(config, &tiles);
        for share in 0..config.shares as usize {
            let share: u64 = plan.share(share).iter().map(|part| cost(config, part)).sum();
            assert!(share <= even + slack, "{share} of {even}, {slack} more at most");
            let mut counts = counts.borrow_mut();
            counts.0 += 1;
            counts.1 += usize::from(share > even);
            if slack > 0 && share > even {
                counts.2 = counts.2.max((share - even) as f64 / slack as f64);
            }
        }
    });
    let (shares, above, most) = counts.into_inner();
    println!("{shares} shares, {above} above even, at most by {:.0}% of the bound", 100.0 * most);
    assert!(shares > 50_000 && most > 0.8, "the bound says something");
}

#[test]
fn no_plan_exceeds_its_bounds() {
    let counts = RefCell::new((0, [0.0_f64; 3]));
    let loose = (0..3_u32, 0..20_u32, 0..100_u32);
    for_all(3000, (cases(LARGE), loose), |(case, (rows, queries, keys))| {
        let plan = plan(&case);
        let held = [plan.parts().len(), plan.merges().len(), plan.num_states() as usize];
        let with_queries = case.rows.iter().filter(|row| row.q_len > 0);
        let most = [
            with_queries.clone().count() as u32,
            with_queries.clone().map(|row| row.q_len).sum(),
            with_queries.map(|row| row.kv_len).max().unwrap_or(0),
        ];
        for more in [[0; 3], [rows, queries, keys]] {
            let bounds =
                case.config.bounds(most[0] + more[0], most[1] + more[1], most[2] + more[2]);
            let bounds = [bounds.parts, bounds.merges, bounds.states];
            let mut counts = counts.borrow_mut();
            for (i, (held, bound)) in held.into_iter().zip(bounds).enumerate() {
                assert!(held as u64 <= bound, "{held} of {bound} in {i}");
                if bound > 0 {
                    counts.1[i] += held as f64 / bound as f64;
                }
            }
            counts.0 += 1;
        }
    });
    let (checked, used) = counts.into_inner();
    let [parts, merges, states] = used.map(|used| 100.0 * used / f64::from(checked));
    println!(
        "{checked} bounds, of which {parts:.0}% parts, {merges:.0}% merges, {states:.0}% states \
         were used on average"
    );
}

fn decode() -> PlanConfig {
    PlanConfig {
        shares: 132,
        heads: 8,
        max_packed_q: 8,
        q_tile: 16,
        kv_granularity: 64,
        causal: true,
        window_left: None,
        fixed_split: None,
        split_q: u32::MAX,
        costs: Costs::default(),
    }
}

#[test]
fn bounds_of_usual_batches_are_reached() {
    let long = Extent { q_len: 1, kv_len: 100_000 };
    let rows = vec![long; 3];
    let of = |config: PlanConfig, rows: &[Extent]| {
        let plan = plan(&Case { config, rows: rows.to_vec() });
        let [parts, merges] = [plan.parts().len(), plan.merges().len()].map(|n| n as u64);
        PlanBounds { parts, merges, states: plan.num_states().into() }
    };
    // A row could have all three queries, and one tile of 24 states be cut everywhere.
    assert_eq!(decode().bounds(3, 3, 100_000), PlanBounds { parts: 134, merges: 3, states: 3168 });
    let all = Extent { q_len: 3, ..long };
    let cut = PlanBounds { parts: 132, merges: 1, states: 3168 };
    assert_eq!(of(decode(), &[all]), cut);
    // Two of the 131 cuts fall between rows.
    let config = PlanConfig { q_tile: 1, ..decode() };
    assert_eq!(config.bounds(3, 3, 100_000), PlanBounds { parts: 134, merges: 3, states: 1072 });
    assert_eq!(of(config, &rows), PlanBounds { parts: 132, merges: 3, states: 1056 });
    assert_eq!(of(config, &rows[..1]), config.bounds(1, 1, 100_000));
    let fixed = PlanConfig { fixed_split: Some(4096), ..config };
    assert_eq!(of(fixed, &rows), fixed.bounds(3, 3, 100_000));
    let window = PlanConfig { window_left: Some(4097), ..fixed };
    assert_eq!(window.bounds(3, 3, 100_000), PlanBounds { parts: 9, merges: 3, states: 72 });
    assert_eq!(of(window, &[Extent { kv_len: 8193, ..long }; 3]).parts, 9);
    assert_eq!(config.bounds(0, 0, 0), PlanBounds { parts: 0, merges: 0, states: 0 });
    assert_eq!(PlanConfig { heads: 0, ..config }.bounds(9, 9, 9), PlanBounds::default());
    println!("9 batches");
}

#[test]
fn the_same_step_gives_the_same_plan_whatever_was_planned_before() {
    let (used, checked) = (RefCell::new(Plan::default()), RefCell::new(0));
    for_all(2000, cases(LARGE), |case| {
        let fresh = plan(&case);
        let mut used = used.borrow_mut();
        used.make(&case.config, case.rows.iter().copied()).expect("a sound configuration");
        assert_eq!(*used, fresh);
        *checked.borrow_mut() += fresh.parts().len();
    });
    println!("{} parts", checked.into_inner());
}

#[test]
fn fixed_splits_make_a_row_s_parts_independent_of_its_batch() {
    let checked = RefCell::new(0);
    for_all(1000, (cases(LARGE), 1..=64_u32), |(case, shares)| {
        let split = case.config.fixed_split.unwrap_or(case.config.kv_granularity * 9);
        let config = PlanConfig { fixed_split: Some(split), ..case.config };
        let together = plan(&Case { config, rows: case.rows.clone() });
        let config = PlanConfig { shares, ..config };
        for (row, &extent) in (0..).zip(&case.rows) {
            let alone = plan(&Case { config, rows: vec![extent] });
            let merge_of = |plan: &Plan, part: &Part| {
                let Some(merge) = plan.merges().get(part.merge as usize) else { return (0, 0) };
                (merge.count, part.partial - merge.partial)
            };
            let bare = |plan: &Plan, part: &Part| {
                let bare = Part { row: 0, partial: 0, merge: 0, ..*part };
                (bare, merge_of(plan, part))
            };
            let of_row = together.parts().iter().filter(|part| part.row == row);
            let of_row = of_row.map(|part| bare(&together, part));
            assert!(of_row.eq(alone.parts().iter().map(|part| bare(&alone, part))));
            *checked.borrow_mut() += alone.parts().len();
        }
    });
    println!("{} parts", checked.into_inner());
}

fn field(result: Result<()>) -> &'static str {
    match result {
        Err(Error::InvalidArgument { field, .. }) => field,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_be_planned_is_named_and_the_plan_stays() {
    let good = decode();
    let before = plan(&Case { config: good, rows: vec![Extent { q_len: 20, kv_len: 9000 }] });
    let mut plan = before.clone();
    let one = Extent { q_len: 1, kv_len: u32::MAX };
    let wide = Extent { q_len: u32::MAX, kv_len: 9000 };
    let costs = |tile: u32, key: u32, query_key: u32| Costs { tile, key, query_key };
    let all = costs(u32::MAX, u32::MAX, u32::MAX);
    let refused = [
        ("shares", PlanConfig { shares: 0, ..good }, one),
        ("heads", PlanConfig { heads: 0, ..good }, one),
        ("q_tile", PlanConfig { q_tile: 0, ..good }, one),
        ("kv_granularity", PlanConfig { kv_granularity: 0, ..good }, one),
        ("fixed_split", PlanConfig { fixed_split: Some(0), ..good }, one),
        ("fixed_split", PlanConfig { fixed_split: Some(96), ..good }, one),
        ("costs", PlanConfig { costs: costs(9, 0, 0), ..good }, one),
        ("costs", PlanConfig { costs: all, ..good }, one),
        ("costs", PlanConfig { costs: all, q_tile: u32::MAX, ..good }, wide),
        ("rows", PlanConfig { kv_granularity: 1, fixed_split: Some(1), ..good }, one),
        ("rows", PlanConfig { q_tile: u32::MAX, heads: 1, ..good }, wide),
    ];
    for (named, config, row) in refused {
        assert_eq!(field(plan.make(&config, [row; 2].into_iter())), named, "{config:?}");
        assert_eq!(plan, before);
    }
    println!("{} refused", refused.len());
    // As large as it gets.
    let most = PlanConfig { costs: costs(u32::MAX, u32::MAX, 0), heads: 1, ..good };
    plan.make(&most, [one].into_iter()).expect("it fits");
    assert_eq!((plan.parts().len(), plan.parts()[131].kv_end), (132, u32::MAX));
}
