//! What a result must not depend on: threads, earlier calls, splits and, where asked for, the rest
//! of the batch.

use inflight::kernels::cpu::{State, merge};
use inflight::kernels::tensor::Shape;
use inflight::kernels::{AttentionConfig, DType, TensorMut, TensorRef};

use crate::attention::{
    Alibi, Answer, Case, Layout, Mask, MaskKind, OnCpu, Scales, Sinks, Spec, TokenLayout, judge,
    naive, oracle,
};
use crate::cpus;
use crate::rng::Rng;

const TYPES: [(DType, DType); 4] = [
    (DType::F32, DType::F32),
    (DType::F16, DType::F16),
    (DType::Bf16, DType::Bf16),
    (DType::Bf16, DType::Fp8E4m3),
];

fn config(types: (DType, DType), heads: (usize, usize), dim: usize) -> AttentionConfig {
    let mut config = AttentionConfig::new(heads.0, heads.1, dim, types.0);
    config.kv_dtype = types.1;
    config
}

/// One long row: its keys are split among the threads.
#[test]
fn long_rows_are_split_and_merged() {
    let mut runs = 0;
    for (types, rows) in [
        (TYPES[0], vec![(1, 20_000)]),
        (TYPES[1], vec![(1, 20_000)]),
        (TYPES[2], vec![(2, 20_011)]),
        (TYPES[3], vec![(1, 20_000), (1, 3), (0, 0)]),
    ] {
        let spec = Spec {
            sinks: Sinks::Usual,
            peak: 4.0,
            ..Spec::new(1, config(types, (4, 1), 64), &rows)
        };
        let mut case = Case::new(&spec);
        let (reference, plain) = (oracle(&case), naive(&case, None));
        for &isa in cpus::isas() {
            for threads in [1, 8] {
                let found = case.answer(&cpus::cpu(isa, threads));
                let verdict = judge(&case, &reference, &plain, &found);
                verdict.unwrap_or_else(|why| panic!("{isa}, {threads} threads: {why}"));
                runs += 1;
            }
        }
    }
    println!("{runs} runs");
}

fn busy(seed: u64, types: (DType, DType)) -> Spec {
    let rows = [(1, 3000), (5, 37), (0, 20), (64, 64), (1, 1), (0, 0), (3, 500), (17, 16)];
    Spec {
        sinks: Sinks::SomeNone,
        alibi: Alibi::Usual,
        scales: if types.1 == DType::Fp8E4m3 { Scales::PerHead } else { Scales::None },
        ..Spec::new(seed, config(types, (6, 2), 64), &rows)
    }
}

#[test]
fn the_same_call_gives_the_same_bits() {
    let mut calls = 0;
    for types in TYPES {
        let mut case = Case::new(&busy(2, types));
        for cpu in cpus::all() {
            let mut on = case.attention(cpu);
            case.plan(&mut on).expect("a sound batch");
            let first = case.execute(&on, true).expect("sound arguments");
            for _ in 0..3 {
                // Layer by layer on one plan.
                let again = case.execute(&on, true).expect("sound arguments");
                assert_eq!(again.bits(), first.bits(), "{cpu:?} {:?}", case.spec);
                calls += 1;
            }
            let without = case.execute(&on, false).expect("sound arguments");
            let same = without.o.iter().zip(&first.o).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && without.lse.iter().all(|x| x.to_bits() == u32::MAX), "{cpu:?}");
            assert_eq!(case.answer(cpu).bits(), first.bits(), "another object, {cpu:?}");
        }
    }
    println!("{calls} repeated calls");
}

/// One object for batches that grow, shrink and change in every way but the configuration.
#[test]
fn plans_follow_one_another() {
    let mut steps = 0;
    for cpu in cpus::each(2) {
        let mut rng = Rng::new(3);
        let config = config(TYPES[0], (4, 2), 32);
        let mut on = OnCpu::new(cpu, config);
        for step in 0..40 {
            let most = [1, 3, 12, 2, 30][step % 5];
            let n = rng.below(most + 1);
            let rows: Vec<_> = (0..n)
                .map(|_| {
                    let kv_len = if rng.chance(10) { 1500 } else { rng.below(90) };
                    (rng.pick(&[0, 1, 1, 1, 4, kv_len.min(60)]), kv_len)
                })
                .collect();
            let spec = Spec {
                block_size: rng.pick(&[1, 4, 16]),
                sinks: rng.pick(&[Sinks::None, Sinks::Usual]),
                mask: rng.pick(&[MaskKind::None, MaskKind::Tree]),
                ..Spec::new(step as u64, config, &rows)
            };
            let mut case = Case::new(&spec);
            case.plan(&mut on).expect("a sound batch");
            if step % 7 == 3 {
                // After a plan that is refused there is none, not even the one before.
                let mut bad = case.clone();
                bad.qo_indptr[0] = 1;
                bad.plan(&mut on).expect_err("qo_indptr begins with 1");
                case.execute(&on, true).expect_err("there is no plan");
                case.plan(&mut on).expect("a sound batch");
            }
            let found = case.execute(&on, true).expect("sound arguments");
            let (reference, plain) = (oracle(&case), naive(&case, None));
            let verdict = judge(&case, &reference, &plain, &found);
            verdict.unwrap_or_else(|why| panic!("step {step}, {cpu:?}: {why}"));
            steps += 1;
        }
    }
    println!("{steps} steps");
}

/// The numbers of one row's tokens.
fn part(case: &Case, answer: &Answer, row: usize) -> Vec<u32> {
    let AttentionConfig { num_q_heads: heads, head_dim, .. } = case.spec.config;
    let tokens = case.tokens(row);
    let o = &answer.o[tokens.start * heads * head_dim..tokens.end * heads * head_dim];
    let lse = &answer.lse[tokens.start * heads..tokens.end * heads];
    o.iter().chain(lse).map(|x| x.to_bits()).collect()
}

#[test]
fn a_row_of_a_batch_is_the_row_alone() {
    let mut rng = Rng::new(4);
    let mut compared = 0;
    for (types, split) in TYPES.into_iter().zip([128, 2048, 256, 128]) {
        for mask in [MaskKind::None, MaskKind::Any] {
            let mut spec = busy(rng.next(), types);
            spec.config.fixed_split = Some(split);
            spec.config.window_left = rng.chance(30).then_some(700);
            spec.mask = mask;
            let case = Case::new(&spec);
            for &isa in cpus::isas() {
                let of_isa: Vec<_> = cpus::all().iter().filter(|cpu| cpu.isa() == isa).collect();
                let alone: Vec<_> = (0..case.rows.len())
                    .map(|row| {
                        let mut alone = case.select(&[row]);
                        let answer = alone.answer(of_isa[0]);
                        part(&alone, &answer, 0)
                    })
                    .collect();
                for _ in 0..8 {
                    let mut order: Vec<usize> = (0..case.rows.len()).collect();
                    (1..order.len()).for_each(|i| order.swap(i, rng.below(i + 1)));
                    order.truncate(rng.within(1, order.len()));
                    let mut batch = case.select(&order);
                    if rng.chance(50) {
                        batch = batch.moved(&mut rng);
                    }
                    let cpu = rng.pick(&of_isa);
                    let answer = batch.answer(cpu);
                    for (at, &row) in order.iter().enumerate() {
                        let same = part(&batch, &answer, at) == alone[row];
                        let rows = &batch.rows;
                        assert!(same, "row {at} of {rows:?}, {cpu:?}, {:?}", batch.spec);
                        compared += 1;
                    }
                }
            }
        }
    }
    println!("{compared} rows compared");
}

/// Attention over two parts of the keys, merged, is attention over all of them.
#[test]
fn states_of_parts_merge() {
    let mut merged = 0;
    for types in [TYPES[0], TYPES[2]] {
        let mut spec = Spec::new(5, config(types, (4, 2), 64), &[(3, 200), (1, 90), (2, 17)]);
        spec.config.causal = false;
        let mut whole = Case::new(&spec);
        let (reference, plain) = (oracle(&whole), naive(&whole, None));
        for cpu in cpus::each(3) {
            for cut in [0, 16, 17] {
                // Masks over all keys: the first `cut`, and the others.
                let halves = [true, false].map(|first| {
                    let mut half = whole.clone();
                    let mut mask = Mask { indptr: vec![0], ..Mask::default() };
                    for &(q_len, kv_len) in &whole.rows {
                        let bit = |j: usize| u8::from((j < cut) == first) << (j % 8);
                        for _ in 0..q_len {
                            let byte = |b: usize| (0..8).map(|i| bit(8 * b + i)).sum::<u8>();
                            mask.bits.extend((0..kv_len.div_ceil(8)).map(byte));
                        }
                        mask.indptr.push(mask.bits.len() as u32);
                        mask.widths.push(kv_len as u32);
                    }
                    half.mask = Some(mask);
                    half.answer(cpu)
                });
                // All keys of the last row may be in the first half: its second is neutral.
                let tokens = whole.num_tokens();
                let shape = Shape::contiguous(tokens, 4, 64);
                let mut found = Answer { o: vec![0.0; tokens * 256], lse: vec![0.0; tokens * 4] };
                let states = halves.each_ref().map(|half| State {
                    o: TensorRef::new(&half.o, shape).expect("it fits"),
                    lse: &half.lse,
                });
                let o = TensorMut::new(&mut found.o, shape).expect("it fits");
                merge(cpu, &states, o, Some(&mut found.lse)).expect("sound states");
                // Each half was rounded to the type; merging adds no more than that.
                let verdict = judge(&whole, &reference, &plain, &found);
                verdict.unwrap_or_else(|why| panic!("cut at {cut}, {cpu:?}: {why}"));
                merged += 1;
            }
            whole = whole.moved(&mut Rng::new(merged));
        }
    }
    println!("{merged} merges");
}

/// One decode by every kind of layout of the same numbers: the same bits.
#[test]
fn layouts_do_not_matter() {
    let mut compared = 0;
    for types in TYPES {
        for dim in [8, 64, 72] {
            let mut spec = busy(6, types);
            spec.config.head_dim = dim;
            for cpu in cpus::each(0) {
                let mut first = None;
                for (i, layout) in [
                    Layout::Nhd,
                    Layout::Hnd,
                    Layout::Mixed,
                    Layout::Interleaved,
                    Layout::Halves,
                    Layout::Padded,
                ]
                .into_iter()
                .enumerate()
                {
                    let layouts = [TokenLayout::Contiguous, TokenLayout::Packed, TokenLayout::Odd];
                    let spec = Spec {
                        layout,
                        q_layout: layouts[i % 3],
                        o_layout: layouts[i / 2],
                        ..spec.clone()
                    };
                    let bits = Case::new(&spec).answer(cpu).bits();
                    let want = first.get_or_insert_with(|| bits.clone());
                    assert_eq!(&bits, want, "{cpu:?} {spec:?}");
                    compared += 1;
                }
            }
        }
    }
    println!("{compared} runs");
}
