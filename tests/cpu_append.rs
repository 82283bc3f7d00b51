//! Append against numbers computed one by one: every byte it stores, and every byte it does not.

#[path = "common/kv.rs"]
mod kv;
#[path = "common/rng.rs"]
mod rng;

use inflight::device::cpu::{Cpu, Isa};
use inflight::kernels::cpu::{Append, Rope, append};
use inflight::kernels::rope::{RopeConfig, RopePairs};
use inflight::kernels::tensor::Shape;
use inflight::kernels::{DType, KvCache, KvLayout, KvScales, TensorMut, TensorRef};
use kv::{Kind, Memory, Tensor, any_number, cpu, cpus, encode, fast_fp8, field, finite_number};
use rng::Rng;

const MAX_POSITION: usize = 50;

/// One append, and what it should leave.
struct Case {
    memory: Memory,
    k: Tensor,
    v: Tensor,
    slots: Vec<i64>,
    scales: [Vec<f32>; 2],
    rope: Option<RopeCase>,
}

struct RopeCase {
    positions: Vec<u32>,
    table: Vec<f32>,
    rotary_dim: usize,
    pairs: RopePairs,
    q: Option<Tensor>,
}

/// The elements of pair `i`.
fn pair(pairs: RopePairs, rotary_dim: usize, i: usize) -> (usize, usize) {
    match pairs {
        RopePairs::Half => (i, i + rotary_dim / 2),
        RopePairs::Interleaved => (2 * i, 2 * i + 1),
    }
}

/// f32 arithmetic done in f64, where products are exact and sums round as they would in f32.
fn f32_sum(a: f64, b: f64) -> f32 {
    let sum = f64::from(a as f32) + f64::from(b as f32);
    // Whatever the kind of NaN, the positive quiet one is stored.
    if sum.is_nan() { f32::from_bits(0x7fc0_0000) } else { sum as f32 }
}

impl RopeCase {
    fn rotate(&self, token: usize, row: &mut [f32]) {
        let dim = self.rotary_dim;
        let at = self.positions[token] as usize * dim;
        for i in 0..dim / 2 {
            let (cos, sin) =
                (f64::from(self.table[at + i]), f64::from(self.table[at + dim / 2 + i]));
            let (a, b) = pair(self.pairs, dim, i);
            let (x, y) = (f64::from(row[a]), f64::from(row[b]));
            (row[a], row[b]) = (f32_sum(x * cos, -(y * sin)), f32_sum(y * cos, x * sin));
        }
    }
}

impl Case {
    fn draw(rng: &mut Rng, kind: Kind, types: [DType; 2], dims: [usize; 4], tokens: usize) -> Self {
        let [num_blocks, block_size, num_heads, head_dim] = dims;
        let [from, to] = types;
        let memory = Memory::new(kind, to, dims, rng.next());
        let mut slots: Vec<i64> = (0..(num_blocks * block_size) as i64).collect();
        if rng.chance(50) {
            // A prompt: one slot after the other, from somewhere on.
            let start = rng.below(slots.len());
            slots.rotate_left(start);
        } else {
            (1..slots.len()).for_each(|i| slots.swap(i, rng.below(i + 1)));
        }
        slots.truncate(tokens);
        if rng.chance(30) {
            for slot in &mut slots {
                *slot = if rng.chance(25) { -1 - rng.below(5) as i64 } else { *slot };
            }
        }
        // There may be more tokens than slots.
        let extra = if rng.chance(10) { 3 } else { 0 };
        let shape = [slots.len() + extra, num_heads, head_dim];
        let (gaps_k, gaps_v) = (rng.chance(50), rng.chance(50));
        let k = Tensor::new(rng, from, shape, gaps_k, any_number);
        let v = Tensor::new(rng, from, shape, gaps_v, any_number);
        let mut scale = || match (to, rng.below(3)) {
            (DType::Fp8E4m3, 0) => vec![0.01 + rng.below(1000) as f32 / 700.0],
            (DType::Fp8E4m3, 1) => vec![1.0],
            (DType::Fp8E4m3, _) => (0..num_heads).map(|h| 0.37 * (h + 1) as f32).collect(),
            _ => vec![],
        };
        let scales = [scale(), scale()];
        let rope = rng.chance(60).then(|| {
            let partial = 2 * rng.within(1, head_dim / 2);
            let rotary_dim = if rng.chance(50) { head_dim } else { partial };
            let table = RopeConfig::new(rotary_dim, 10_000.0).table(MAX_POSITION).unwrap();
            let q_type = rng.pick(&[DType::F32, DType::F16, DType::Bf16]);
            let q_shape = [slots.len() + extra, num_heads * rng.within(1, 2), head_dim];
            let (with_q, gaps) = (rng.chance(60), rng.chance(50));
            RopeCase {
                positions: slots.iter().map(|_| rng.below(MAX_POSITION) as u32).collect(),
                table,
                rotary_dim,
                pairs: rng.pick(&[RopePairs::Half, RopePairs::Interleaved]),
                q: with_q.then(|| Tensor::new(rng, q_type, q_shape, gaps, any_number)),
            }
        });
        Self { memory, k, v, slots, scales, rope }
    }

    /// The bytes of the cache afterwards, and of the queries.
    fn expected(&self) -> (Vec<u8>, Vec<u8>) {
        let KvLayout { dtype, block_size, num_heads, head_dim, .. } = self.memory.layout;
        let mut bytes = self.memory.bytes.to_vec();
        for (token, &slot) in self.slots.iter().enumerate().filter(|&(_, &slot)| slot >= 0) {
            let (block, offset) = (slot as usize / block_size, slot as usize % block_size);
            for (side, new) in [&self.k, &self.v].into_iter().enumerate() {
                let rope = self.rope.as_ref().filter(|_| side == 0);
                for head in 0..num_heads {
                    let mut row: Vec<f32> =
                        (0..head_dim).map(|i| new.get(token, head, i)).collect();
                    if let Some(rope) = rope {
                        rope.rotate(token, &mut row);
                    }
                    let rotated = rope.map_or(0, |rope| rope.rotary_dim);
                    let at = self.memory.at(side, block, offset, head);
                    let scales = &self.scales[side];
                    for (i, &number) in row.iter().enumerate() {
                        let to = &mut bytes[at + i * dtype.size()..];
                        if new.dtype == dtype && i >= rotated {
                            let at = new.at(token, head, i);
                            let from = &new.bytes[at..at + dtype.size()];
                            to[..dtype.size()].copy_from_slice(from);
                        } else if dtype == DType::Fp8E4m3 {
                            let scale = if scales.len() == 1 { scales[0] } else { scales[head] };
                            // In f64 the quotient is close enough to round as in f32.
                            to[0] = fast_fp8((f64::from(number) / f64::from(scale)) as f32);
                        } else {
                            encode(dtype, number, to);
                        }
                    }
                }
            }
        }
        let queries = self.rope.as_ref().and_then(|rope| Some((rope, rope.q.as_ref()?)));
        let Some((rope, q)) = queries else { return (bytes, vec![]) };
        let mut q_bytes = q.bytes.to_vec();
        for token in 0..self.slots.len() {
            for head in 0..q.shape.heads {
                let mut row: Vec<f32> = (0..head_dim).map(|i| q.get(token, head, i)).collect();
                rope.rotate(token, &mut row);
                for (i, &number) in row.iter().enumerate().take(rope.rotary_dim) {
                    encode(q.dtype, number, &mut q_bytes[q.at(token, head, i)..]);
                }
            }
        }
        (bytes, q_bytes)
    }

    fn run(&mut self, cpu: &Cpu) -> inflight::Result<()> {
        let Self { memory, k, v, slots, scales, rope } = self;
        let rope = rope.as_mut().map(|rope| Rope {
            positions: &rope.positions,
            cos_sin: &rope.table,
            rotary_dim: rope.rotary_dim,
            pairs: rope.pairs,
            q: rope.q.as_mut().map(Tensor::view_mut),
        });
        let scales = KvScales { k: &scales[0], v: &scales[1] };
        let args = Append { k: k.view(), v: v.view(), slot_mapping: slots, scales, rope };
        append(cpu, &mut memory.cache(), args)
    }

    /// Runs on each CPU from the same bytes, and compares all of them.
    fn check(&mut self, cpus: &[Cpu], what: &str) {
        let (bytes, q_bytes) = self.expected();
        let before = self.memory.bytes.to_vec();
        let q = self.rope.as_ref().and_then(|rope| rope.q.as_ref());
        let q_before = q.map_or(vec![], |q| q.bytes.to_vec());
        for cpu in cpus {
            self.memory.bytes.copy_from_slice(&before);
            if let Some(q) = self.rope.as_mut().and_then(|rope| rope.q.as_mut()) {
                q.bytes.copy_from_slice(&q_before);
            }
            self.run(cpu).unwrap();
            let differs = self.memory.bytes.iter().zip(&bytes).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{what}, {}: cache, first byte that differs", cpu.isa());
            if let Some(q) = self.rope.as_ref().and_then(|rope| rope.q.as_ref()) {
                let differs = q.bytes.iter().zip(&q_bytes).position(|(a, b)| a != b);
                assert_eq!(differs, None, "{what}, {}: q, first byte that differs", cpu.isa());
            }
        }
    }
}

const TYPES: [[DType; 2]; 6] = [
    [DType::F32, DType::F32],
    [DType::F16, DType::F16],
    [DType::Bf16, DType::Bf16],
    [DType::F32, DType::Fp8E4m3],
    [DType::F16, DType::Fp8E4m3],
    [DType::Bf16, DType::Fp8E4m3],
];

#[test]
fn every_byte_is_right_for_all_types_layouts_and_sizes() {
    let cpus = cpus(1);
    let mut rng = Rng::new(7);
    let (mut cases, mut tokens) = (0, 0);
    for types in TYPES {
        for kind in Kind::ALL {
            for block_size in [1, 3, 8, 16, 64] {
                for head_dim in [8, 64, 72, 80, 128, 256] {
                    for num_heads in [1, 3, 8] {
                        let num_blocks = if block_size < 8 { 6 } else { 2 };
                        let dims = [num_blocks, block_size, num_heads, head_dim];
                        let count = rng.within(1, 5);
                        let mut case = Case::draw(&mut rng, kind, types, dims, count);
                        case.check(&cpus, &format!("{types:?} {kind:?} {dims:?}"));
                        cases += 1;
                        tokens += case.slots.len();
                    }
                }
            }
        }
    }
    println!("{cases} appends of {tokens} tokens on {} instruction sets", cpus.len());
}

#[test]
fn many_tokens_on_many_threads_store_the_same() {
    let mut rng = Rng::new(8);
    let mut cases = 0;
    for threads in [1, 2, 3] {
        let cpus = [cpu(threads, Isa::best())];
        for types in TYPES {
            for kind in [Kind::Nhd, Kind::Hnd] {
                let mut case = Case::draw(&mut rng, kind, types, [30, 16, 8, 64], 460);
                case.check(&cpus, &format!("{threads} threads {types:?} {kind:?}"));
                cases += 1;
            }
        }
    }
    println!("{cases} appends of 460 tokens");
}

#[test]
fn rotation_is_that_of_the_paper() {
    // Against cosines and sines in f64: angles, products and the sum are rounded once each.
    let mut rng = Rng::new(9);
    let cpu = cpu(1, Isa::best());
    let mut worst = 0.0_f64;
    for pairs in [RopePairs::Half, RopePairs::Interleaved] {
        let (dim, rotary_dim) = (64, 48);
        let mut q = Tensor::new(&mut rng, DType::F32, [MAX_POSITION, 1, dim], false, finite_number);
        let k = Tensor::new(&mut rng, DType::F32, [MAX_POSITION, 1, dim], false, finite_number);
        let table = RopeConfig::new(rotary_dim, 10_000.0).table(MAX_POSITION).unwrap();
        let positions: Vec<u32> = (0..MAX_POSITION as u32).rev().collect();
        let slots: Vec<i64> = (0..MAX_POSITION as i64).collect();
        let mut memory = Memory::new(Kind::Nhd, DType::F32, [10, 5, 1, dim], 1);
        let before: Vec<f32> =
            (0..MAX_POSITION * dim).map(|i| q.get(i / dim, 0, i % dim)).collect();
        let rope = Rope {
            positions: &positions,
            cos_sin: &table,
            rotary_dim,
            pairs,
            q: Some(q.view_mut()),
        };
        let args = Append { rope: Some(rope), ..Append::new(k.view(), k.view(), &slots) };
        append(&cpu, &mut memory.cache(), args).unwrap();
        for (token, &position) in positions.iter().enumerate() {
            for i in 0..rotary_dim / 2 {
                let frequency = 10_000_f64.powf(-2.0 * i as f64 / rotary_dim as f64);
                let (sin, cos) = (f64::from(position) * frequency).sin_cos();
                let (a, b) = pair(pairs, rotary_dim, i);
                let row = &before[token * dim..];
                let (x, y) = (f64::from(row[a]), f64::from(row[b]));
                for (i, number) in [(a, x * cos - y * sin), (b, y * cos + x * sin)] {
                    worst = worst.max((f64::from(q.get(token, 0, i)) - number).abs());
                }
            }
        }
    }
    println!("worst error {worst:.2e} of numbers up to 6");
    assert!(worst < 1e-6, "{worst}");
}

#[test]
fn nothing_to_append_is_no_error() {
    let mut rng = Rng::new(10);
    for kind in Kind::ALL {
        for slots in [vec![], vec![-1, -7, i64::MIN]] {
            let mut case = Case::draw(&mut rng, kind, TYPES[0], [2, 4, 2, 16], 3);
            case.slots = slots;
            case.rope = None;
            let before = case.memory.bytes.to_vec();
            case.k = Tensor::new(&mut rng, DType::F32, [3, 2, 16], false, any_number);
            case.v = Tensor::new(&mut rng, DType::F32, [3, 2, 16], false, any_number);
            case.run(&cpu(2, Isa::best())).unwrap();
            assert!(*case.memory.bytes == before[..]);
        }
    }
}

#[test]
fn what_is_refused_is_named_and_nothing_is_written() {
    type Change = fn(&mut Case);
    let mut rng = Rng::new(11);
    let shape = [4, 2, 16];
    let plain: [(&str, Change); 15] = [
        ("k", |c| c.k = tensor(DType::F16, [4, 2, 16])),
        ("v", |c| c.v = tensor(DType::F16, [4, 2, 16])),
        ("k", |c| c.k = tensor(DType::F32, [3, 2, 16])),
        ("v", |c| c.v = tensor(DType::F32, [3, 2, 16])),
        ("k", |c| c.k = tensor(DType::F32, [4, 1, 16])),
        ("v", |c| c.v = tensor(DType::F32, [4, 2, 24])),
        ("k", |c| c.k = tensor(DType::Fp8E4m3, [4, 2, 16])),
        ("slot_mapping", |c| c.slots[2] = 20),
        ("slot_mapping", |c| c.slots[0] = i64::MAX),
        ("slot_mapping", |c| c.slots[3] = c.slots[0]),
        ("slot_mapping", |c| c.slots[1] = c.slots[2]),
        ("scales.k", |c| c.scales[0] = vec![1.0]),
        ("scales.v", |c| c.scales[1] = vec![1.0]),
        ("slot_mapping", |c| c.slots = vec![3, 4, 2, 3]),
        ("slot_mapping", |c| c.slots = vec![-1, 19, -1, 19]),
    ];
    let rope: [(&str, Change); 16] = [
        ("rotary_dim", |c| rope(c).rotary_dim = 0),
        ("rotary_dim", |c| rope(c).rotary_dim = 7),
        ("rotary_dim", |c| rope(c).rotary_dim = 18),
        ("positions", |c| rope(c).positions[1] = MAX_POSITION as u32),
        ("positions", |c| rope(c).positions[3] = u32::MAX),
        ("positions", |c| rope(c).positions.truncate(3)),
        ("positions", |c| rope(c).positions.push(0)),
        ("positions", |c| rope(c).table.clear()),
        ("cos_sin", |c| rope(c).table.truncate(5)),
        ("cos_sin", |c| rope(c).table.push(0.0)),
        ("q", |c| rope(c).q = Some(tensor(DType::Fp8E4m3, [4, 4, 16]))),
        ("q", |c| rope(c).q = Some(tensor(DType::F32, [3, 4, 16]))),
        ("q", |c| rope(c).q = Some(tensor(DType::F32, [4, 4, 24]))),
        ("slot_mapping", |c| c.slots[2] = 20),
        ("slot_mapping", |c| c.slots[3] = c.slots[0]),
        // A token without a slot has a position all the same.
        ("positions", |c| {
            c.slots[2] = -1;
            rope(c).positions[2] = 1000;
        }),
    ];
    let fp8: [(&str, Change); 8] = [
        ("scales.k", |c| c.scales[0] = vec![]),
        ("scales.v", |c| c.scales[1] = vec![]),
        ("scales.k", |c| c.scales[0] = vec![1.0; 3]),
        ("scales.k", |c| c.scales[0] = vec![0.0]),
        ("scales.v", |c| c.scales[1] = vec![1.0, -1.0]),
        ("scales.v", |c| c.scales[1] = vec![f32::NAN]),
        ("scales.k", |c| c.scales[0] = vec![f32::INFINITY]),
        ("k", |c| c.k = tensor(DType::Fp8E4m3, [4, 2, 16])),
    ];
    let all = [(&plain[..], DType::F32), (&rope[..], DType::F32), (&fp8[..], DType::Fp8E4m3)];
    let mut count = 0;
    for (group, (changes, to)) in all.into_iter().enumerate() {
        for (i, &(name, change)) in changes.iter().enumerate() {
            let mut case = Case {
                memory: Memory::new(Kind::Padded, to, [5, 4, 2, 16], rng.next()),
                k: tensor(DType::F32, shape),
                v: tensor(DType::F32, shape),
                slots: vec![7, 8, 2, 3],
                scales: if to == DType::F32 { [vec![], vec![]] } else { [vec![1.0], vec![2.0]] },
                rope: (group == 1).then(|| RopeCase {
                    positions: vec![0, 1, 2, 49],
                    table: RopeConfig::new(16, 10_000.0).table(MAX_POSITION).unwrap(),
                    rotary_dim: 16,
                    pairs: RopePairs::Half,
                    q: Some(tensor(DType::F16, [4, 4, 16])),
                }),
            };
            change(&mut case);
            let before = case.memory.bytes.to_vec();
            let q_before = case.rope.as_ref().and_then(|r| Some(r.q.as_ref()?.bytes.to_vec()));
            assert_eq!(field(case.run(&cpu(1, Isa::best()))), name, "group {group}, case {i}");
            assert!(*case.memory.bytes == before[..], "group {group}, case {i} has written");
            let q = case.rope.as_ref().and_then(|r| Some(r.q.as_ref()?.bytes.to_vec()));
            assert!(q == q_before, "group {group}, case {i} has written queries");
            count += 1;
        }
    }
    println!("{count} bad calls refused");
}

fn rope(case: &mut Case) -> &mut RopeCase {
    case.rope.as_mut().unwrap()
}

fn tensor(dtype: DType, shape: [usize; 3]) -> Tensor {
    Tensor::new(&mut Rng::new(1), dtype, shape, false, finite_number)
}

#[test]
fn memory_of_other_languages_is_checked() {
    let mut memory = Memory::new(Kind::Nhd, DType::F32, [2, 4, 1, 16], 1);
    let before = memory.bytes.to_vec();
    let numbers = vec![1.0_f32; 4 * 16 + 1];
    let mut q_numbers = numbers.clone();
    let shape = Shape::contiguous(4, 1, 16);
    let odd = numbers.as_ptr().cast::<u8>().wrapping_add(1);
    // SAFETY: the numbers have one more than the shape takes.
    let (odd, even) = unsafe { (TensorRef::from_raw(odd, DType::F32, shape), odd.wrapping_sub(1)) };
    // SAFETY: as above.
    let even = unsafe { TensorRef::from_raw(even, DType::F32, shape) };
    let cpu = cpu(1, Isa::best());
    let slots = [0, 1, 2, 3];
    let mut run = |k, v, q: Option<TensorMut<'_>>| {
        let table = [1.0; 8];
        let rope = q.map(|q| Rope {
            positions: &[0; 4],
            cos_sin: &table,
            rotary_dim: 8,
            pairs: RopePairs::Half,
            q: Some(q),
        });
        let mut cache: KvCache<'_> = memory.cache();
        field(append(&cpu, &mut cache, Append { rope, ..Append::new(k, v, &slots) }))
    };
    assert_eq!(run(odd, even, None), "k");
    assert_eq!(run(even, odd, None), "v");
    let q = q_numbers.as_mut_ptr().cast::<u8>();
    let overlapping = Shape { token_stride: 8, ..shape };
    // SAFETY: the numbers have one more than the shape takes.
    let q_odd = unsafe { TensorMut::from_raw(q.wrapping_add(1), DType::F32, shape) };
    assert_eq!(run(even, even, Some(q_odd)), "q");
    // SAFETY: as above.
    let q_overlapping = unsafe { TensorMut::from_raw(q, DType::F32, overlapping) };
    assert_eq!(run(even, even, Some(q_overlapping)), "q");
    assert!(*memory.bytes == before[..] && q_numbers == numbers);
}

#[test]
fn two_tokens_for_a_slot_are_always_found() {
    let mut rng = Rng::new(12);
    let cpu = cpu(1, Isa::best());
    let mut memory = Memory::new(Kind::Nhd, DType::Bf16, [8, 4, 1, 8], 1);
    let k = tensor(DType::Bf16, [20, 1, 8]);
    let mut doubled = 0;
    for _ in 0..20_000 {
        let mut slots = Vec::new();
        while slots.len() < 12 {
            // Runs of slots, some of them backwards or skipped.
            let start = rng.below(32) as i64;
            let run = start..(start + rng.within(1, 4) as i64).min(32);
            slots.extend(run.map(|slot| if rng.chance(10) { -1 } else { slot }));
        }
        slots.truncate(rng.within(1, 8));
        let mut used: Vec<i64> = slots.iter().copied().filter(|&slot| slot >= 0).collect();
        used.sort_unstable();
        let twice = used.windows(2).any(|pair| pair[0] == pair[1]);
        let result = append(&cpu, &mut memory.cache(), Append::new(k.view(), k.view(), &slots));
        assert_eq!(result.is_err(), twice, "{slots:?}");
        doubled += usize::from(twice);
    }
    println!("{doubled} of 20000 mappings had a slot twice");
    assert!((1_000..19_000).contains(&doubled));
}
