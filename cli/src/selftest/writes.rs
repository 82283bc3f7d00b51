//! Appending, merging and moving blocks, against the reference.

use inflight::cache::BlockOp;
use inflight::kernels::rope::RopePairs;
use inflight::kernels::tensor::Shape;
use inflight::kernels::{DType, KvLayout};
use inflight::{Error, Result};

use super::device::New;
use super::reference::{self, State, angle};
use super::{Device, Outcome, Worst, random};
use crate::tensor::Tensor;
use crate::trace::SplitMix64;

const KV_HEADS: usize = 2;
const Q_HEADS: usize = 6;
const NUM_BLOCKS: usize = 12;
/// Of K and of V, where the cache is fp8: powers of two, which divide exactly.
const SCALES: [f32; 2] = [1.0 / 256.0, 1.0 / 128.0];
/// (block size, head dimension).
const GEOMETRIES: [(usize, usize); 4] = [(16, 64), (1, 80), (16, 128), (4, 16)];

/// (type of new numbers, type of the cache, bound of rotated numbers). Those are at most 1.5, and
/// are rounded once; fp8 keeps four bits of them.
const TYPES: [(DType, DType, f64); 6] = [
    (DType::F32, DType::F32, 1e-6),
    (DType::F16, DType::F16, 8e-4),
    (DType::Bf16, DType::Bf16, 6e-3),
    (DType::F32, DType::Fp8E4m3, 0.07),
    (DType::F16, DType::Fp8E4m3, 0.07),
    (DType::Bf16, DType::Fp8E4m3, 0.07),
];

/// All cases that write to a cache, and merging.
pub(super) fn run(device: &Device, outcomes: &mut Vec<Outcome>) {
    for (dtype, cache, bound) in TYPES.into_iter().filter(|types| device.has(types.0)) {
        let modes = [
            ("append", None, 0.0),
            ("append, rotated by halves", Some(RopePairs::Half), bound),
            ("append, rotated by pairs", Some(RopePairs::Interleaved), bound),
        ];
        for (name, pairs, bound) in modes {
            let mut worst = Worst::default();
            let done = GEOMETRIES.iter().try_for_each(|&geometry| {
                appended(device, (dtype, cache), geometry, pairs, &mut worst)
            });
            outcomes.push(Outcome::new(name, (dtype, cache), bound, done.map(|()| worst)));
        }
    }
    let types = [(DType::F32, 2e-6), (DType::F16, 1e-3), (DType::Bf16, 8e-3)];
    for (dtype, bound) in types.into_iter().filter(|types| device.has(types.0)) {
        outcomes.push(Outcome::new("merge", (dtype, dtype), bound, merged(device, dtype)));
    }
    for dtype in DType::ALL.into_iter().filter(|&dtype| device.has(dtype)) {
        let moved = moved(device, dtype);
        outcomes.push(Outcome::new("move blocks, byte by byte", (dtype, dtype), 0.0, moved));
    }
}

/// New tokens in scattered slots: they are what they were, rotated, and nothing else has changed.
fn appended(
    device: &Device,
    (dtype, cache_dtype): (DType, DType),
    (block_size, dim): (usize, usize),
    pairs: Option<RopePairs>,
    worst: &mut Worst,
) -> Result<()> {
    let mut rng = SplitMix64::new((block_size * 1000 + dim) as u64);
    let layout = KvLayout::nhd(cache_dtype, NUM_BLOCKS, block_size, KV_HEADS, dim);
    let all = NUM_BLOCKS * block_size;
    let mut slots: Vec<i64> = (0..all as i64).collect();
    for last in (1..all).rev() {
        slots.swap(last, (rng.next() % (last as u64 + 1)) as usize);
    }
    slots.truncate(all * 2 / 3);
    // Tokens that go nowhere.
    slots.iter_mut().step_by(5).for_each(|slot| *slot = -1);
    let tokens = slots.len();
    let (k, k_numbers) = random(dtype, tokens, KV_HEADS, dim, &mut rng)?;
    let (v, v_numbers) = random(dtype, tokens, KV_HEADS, dim, &mut rng)?;
    let (mut q, mut q_numbers) = random(dtype, tokens, Q_HEADS, dim, &mut rng)?;
    let positions: Vec<u32> = (0..tokens).map(|_| (rng.next() % 300) as u32).collect();
    // Some of the head, where it is large enough.
    let rotary_dim = if dim > 64 { dim / 2 } else { dim };
    let mut cos_sin = Vec::new();
    for position in 0..300 {
        let angles = || (0..rotary_dim / 2).map(|pair| angle(position, pair, rotary_dim));
        cos_sin.extend(angles().map(|angle| angle.cos() as f32));
        cos_sin.extend(angles().map(|angle| angle.sin() as f32));
    }
    let elements = layout.k_extent()?;
    let old = (0..elements).map(|at| (at % 7) as f64);
    let mut keys = Tensor::from_numbers(cache_dtype, old.clone())?;
    let mut values = Tensor::from_numbers(cache_dtype, old)?;
    let fp8 = cache_dtype == DType::Fp8E4m3;
    let shape = |heads| Shape::contiguous(tokens, heads, dim);
    let new = New {
        k: &k,
        v: &v,
        shape: shape(KV_HEADS),
        slots: &slots,
        layout,
        scales: if fp8 { [&SCALES[..1], &SCALES[1..]] } else { [&[], &[]] },
        rope: pairs.map(|pairs| (pairs, &positions[..], &cos_sin[..], rotary_dim)),
    };
    let (cache, queries) = ((&mut keys, &mut values), (&mut q, shape(Q_HEADS)));
    device.append(dtype, &new, cache, queries)?;

    let rotated = |numbers: &[f64], token: usize| {
        let mut head = numbers.to_vec();
        if let Some(pairs) = pairs {
            let interleaved = pairs == RopePairs::Interleaved;
            reference::rotate(&mut head, positions[token], rotary_dim, interleaved);
        }
        head
    };
    let mut expected = vec![[None; 2]; all * KV_HEADS];
    for (token, &slot) in slots.iter().enumerate() {
        for head in 0..Q_HEADS {
            let turned = rotated(q_numbers.at(token, head), token);
            let at = (token * Q_HEADS + head) * dim;
            for (i, number) in turned.iter().enumerate() {
                // Queries are of their own type, whatever the cache is, and their bound is less.
                let slack = if fp8 { 8.0 } else { 1.0 };
                worst.add(q.get(at + i) * slack, number * slack);
            }
            q_numbers.numbers[at..at + dim].copy_from_slice(&turned);
        }
        if let Ok(slot) = usize::try_from(slot) {
            for head in 0..KV_HEADS {
                expected[slot * KV_HEADS + head] = [Some(token), Some(head)];
            }
        }
    }
    for (row, expected) in expected.iter().enumerate() {
        for (cache, numbers, scale, turns) in
            [(&keys, &k_numbers, SCALES[0], true), (&values, &v_numbers, SCALES[1], false)]
        {
            let scale = if fp8 { f64::from(scale) } else { 1.0 };
            let want = match *expected {
                [Some(token), Some(head)] if turns => rotated(numbers.at(token, head), token),
                [Some(token), Some(head)] => numbers.at(token, head).to_vec(),
                _ => (row * dim..(row + 1) * dim).map(|at| (at % 7) as f64 * scale).collect(),
            };
            for (i, want) in want.iter().enumerate() {
                // What is not rotated is the nearest there is, exactly.
                let exact = pairs.is_none() || !turns || expected[0].is_none();
                let want = if exact { rounded(want / scale, cache_dtype)? * scale } else { *want };
                worst.add(cache.get(row * dim + i) * scale, want);
            }
        }
    }
    Ok(())
}

/// The nearest number of a type.
fn rounded(number: f64, dtype: DType) -> Result<f64> {
    Ok(Tensor::from_numbers(dtype, [number].into_iter())?.get(0))
}

/// Three states of which some are empty, into one.
fn merged(device: &Device, dtype: DType) -> Result<Worst> {
    let mut worst = Worst::default();
    let mut rng = SplitMix64::new(3);
    for (tokens, heads, dim) in [(1, 1, 64), (37, 4, 80), (5, 28, 128)] {
        let mut states = Vec::new();
        for _ in 0..3 {
            let (o, numbers) = random(dtype, tokens, heads, dim, &mut rng)?;
            let lse: Vec<f32> = (0..tokens * heads)
                .map(|_| match rng.next() % 4 {
                    0 => f32::NEG_INFINITY,
                    _ => (rng.unit() * 20.0 - 5.0) as f32,
                })
                .collect();
            states.push((o, numbers, lse));
        }
        let shape = Shape::contiguous(tokens, heads, dim);
        let mut o = Tensor::zeros(dtype, tokens * heads * dim)?;
        let mut lse = vec![f32::NAN; tokens * heads];
        let views: Vec<_> = states.iter().map(|(o, _, lse)| (o.bytes(), &lse[..])).collect();
        device.merge(dtype, &views, shape, (o.bytes_mut(), &mut lse))?;
        for (at, found) in lse.iter().enumerate() {
            let parts: Vec<State> = states
                .iter()
                .map(|(_, numbers, lse)| State {
                    o: numbers.at(at / heads, at % heads).to_vec(),
                    lse: f64::from(lse[at]),
                })
                .collect();
            let want = reference::merge(&parts);
            worst.add(f64::from(*found), want.lse);
            for (i, want) in want.o.iter().enumerate() {
                worst.add(o.get(at * dim + i), *want);
            }
        }
    }
    Ok(worst)
}

/// Copies, swaps out and in, one after the other, of two layers.
fn moved(device: &Device, dtype: DType) -> Result<Worst> {
    let mut rng = SplitMix64::new(4);
    let (block_size, dim) = (16, 80);
    let here = KvLayout::nhd(dtype, NUM_BLOCKS, block_size, KV_HEADS, dim);
    let host = KvLayout::nhd(dtype, 5, block_size, KV_HEADS, dim);
    let mut pools = Vec::new();
    for layout in [here, host] {
        // Two layers of K and V.
        let mut noise = || {
            let mut tensor = Tensor::zeros(dtype, layout.k_extent()?)?;
            tensor.bytes_mut().iter_mut().for_each(|byte| *byte = rng.next() as u8);
            Ok::<_, Error>(tensor)
        };
        pools.push([noise()?, noise()?, noise()?, noise()?]);
    }
    let op = |kind, src, dst| BlockOp { kind, src, dst };
    let ops = [
        op(BlockOp::COPY, 1, 2),
        op(BlockOp::COPY, 2, 3),
        op(BlockOp::SWAP_OUT, 3, 0),
        op(BlockOp::COPY, 7, 3),
        op(BlockOp::SWAP_OUT, 11, 4),
        op(BlockOp::SWAP_IN, 4, 1),
        op(BlockOp::SWAP_IN, 0, 9),
    ];
    let bytes = block_size * KV_HEADS * dim * dtype.size();
    let mut expected: Vec<Vec<Vec<u8>>> = pools
        .iter()
        .map(|pool| pool.iter().map(|tensor| tensor.bytes().to_vec()).collect())
        .collect();
    for BlockOp { kind, src, dst } in ops {
        let (from, to) = match kind {
            BlockOp::COPY => (0, 0),
            BlockOp::SWAP_OUT => (0, 1),
            _ => (1, 0),
        };
        let block = |at: u32| at as usize * bytes..(at as usize + 1) * bytes;
        let read = expected[from].iter().map(|tensor| tensor[block(src)].to_vec());
        let read: Vec<_> = read.collect();
        for (tensor, data) in expected[to].iter_mut().zip(read) {
            tensor[block(dst)].copy_from_slice(&data);
        }
    }
    let (on_device, on_host) = pools.split_at_mut(1);
    device.move_blocks(&ops, (&mut on_device[0], here), (&mut on_host[0], host))?;
    let mut worst = Worst::default();
    for (pool, expected) in pools.iter().zip(&expected) {
        for (tensor, expected) in pool.iter().zip(expected) {
            let bytes = tensor.bytes().iter().zip(expected);
            bytes.for_each(|(found, want)| worst.add(f64::from(*found), f64::from(*want)));
        }
    }
    Ok(worst)
}
