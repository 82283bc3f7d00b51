//! Limits of memory and arithmetic, and the kernels that move data: append, block copies, merge.

use std::hint::black_box;
use std::time::Instant;

use inflight::Result;
use inflight::cache::BlockOp;
use inflight::kernels::cpu::{Append, Rope, State, append, merge, move_blocks};
use inflight::kernels::rope::RopePairs;
use inflight::kernels::tensor::Shape;
use inflight::kernels::{DType, KvLayout, KvScales};
use rayon::prelude::*;

use crate::data::{Arena, Bench, CacheShape, Side, fill, shuffled, tensor, tensor_mut, time};
use crate::table::Sample;
use crate::{Cases, peak};

/// Timed together in a sample, at least.
const LEAST: f64 = 0.02;
const HEADS: usize = 8;
const DIM: usize = 128;
const BLOCK: usize = 16;

/// The limits themselves.
pub(crate) fn limits(cases: &mut Cases<'_>) -> Result<()> {
    for (i, method) in cases.bench.methods.iter().enumerate() {
        let name = format!("limit: read, {}", method.name);
        cases.add(&name.clone(), |_| {
            Ok(move |bench: &mut Bench| {
                let one = bench.read_with(i, true);
                let note = if i == bench.best { "the limit of reading" } else { "" };
                let rate = bench.read_with(i, false);
                Ok(vec![Sample::new(name.clone(), "GB/s", rate).of("1 thread", one).note(note)])
            })
        })?;
    }
    for (name, dtype) in [("bf16", DType::Bf16), ("f32", DType::F32)] {
        let name = format!("limit: copy, 2048 tokens of {name}");
        cases.add(&name.clone(), |_| {
            let mut copies = Copies::new(2048, dtype);
            Ok(move |bench: &mut Bench| {
                let [whole, blocks] = copies.run(&bench.all, &mut bench.target);
                let note = format!("2 x {} MiB, std memcpy", copies.k.len() >> 17);
                Ok(vec![
                    Sample::new(name.clone(), "GB/s", whole).note(note),
                    Sample::new(format!("{name}, by block"), "GB/s", blocks),
                ])
            })
        })?;
    }
    cases.add("limit: copy, 256 MiB", |_| {
        Ok(|bench: &mut Bench| {
            let bytes = bench.target.k.len();
            let rate = |bench: &mut Bench, one| {
                let Arena { k, v } = &mut bench.target;
                let side = if one { &bench.one } else { &bench.all };
                let piece = bytes.div_ceil(side.cpu.threads());
                let spent = time(|| {
                    side.pool.install(|| {
                        v.par_chunks_mut(piece)
                            .zip(k.par_chunks(piece))
                            .for_each(|(to, from)| to.copy_from_slice(from));
                    });
                });
                bytes as f64 / spent / 1e9
            };
            let one = rate(bench, true);
            let all = rate(bench, false);
            Ok(vec![Sample::new("limit: copy, 256 MiB", "GB/s", all).of("1 thread", one)])
        })
    })?;
    cases.add("limit: f32 FMA, registers only", |_| {
        Ok(|bench: &mut Bench| {
            let one = peak::fma(&bench.one.pool);
            let all = peak::fma(&bench.all.pool);
            let name = "limit: f32 FMA, registers only";
            Ok(vec![Sample::new(name, "GFLOP/s", all).of("1 thread", one)])
        })
    })?;
    cases.add("limit: bf16 dot, registers only", |_| {
        Ok(|bench: &mut Bench| {
            let name = "limit: bf16 dot, registers only";
            Ok(vec![match peak::dot_bf16(&bench.all.pool) {
                Some(all) => Sample::new(name, "GFLOP/s", all),
                None => Sample::new(name, "GFLOP/s", 0.0)
                    .note("no bf16 dot product on this CPU; the limit is f32 FMA"),
            }])
        })
    })?;
    cases.add("limit: f32 GEMM", |_| {
        Ok(|bench: &mut Bench| {
            let one = bench.gemm(true);
            let fma = peak::fma(&bench.all.pool);
            let all = bench.gemm(false);
            let note = format!("{}, 2048 x 2048 x 2048", bench.gemm.name());
            let sample = Sample::new("limit: f32 GEMM", "GFLOP/s", all).note(note);
            Ok(vec![sample.of("1 thread", one).of("f32 FMA", fma)])
        })
    })
}

/// Rows of new keys and values, copied into a cache as an append would if all it did was copy.
struct Copies {
    k: Vec<u64>,
    v: Vec<u64>,
    /// Blocks of the cache, in the order they are filled.
    order: Vec<u32>,
    block_bytes: usize,
    turn: usize,
}

impl Copies {
    fn new(tokens: usize, dtype: DType) -> Self {
        let row = HEADS * DIM * dtype.size();
        let mut k = vec![0; tokens * row / 8];
        let mut v = k.clone();
        fill(bytemuck::cast_slice_mut(&mut k), 21);
        fill(bytemuck::cast_slice_mut(&mut v), 22);
        Self { k, v, order: Vec::new(), block_bytes: BLOCK.min(tokens) * row, turn: 0 }
    }

    /// GB/s, each byte counted once: into one contiguous region, and into shuffled blocks.
    fn run(&mut self, side: &Side, target: &mut Arena) -> [f64; 2] {
        [self.some(side, target, false), self.some(side, target, true)]
    }

    fn some(&mut self, side: &Side, target: &mut Arena, scattered: bool) -> f64 {
        let bytes = self.k.len() * 8;
        if self.order.is_empty() {
            self.order = shuffled(target.k.len() / self.block_bytes);
        }
        let (mut spent, mut runs) = (0.0, 0);
        while spent < LEAST {
            self.turn += 1;
            let piece = if scattered { self.block_bytes } else { bytes };
            let count = bytes / piece;
            let start = self.turn * count % (target.k.len() / piece - count + 1);
            let mut jobs: Vec<(&[u8], &mut [u8])> = Vec::new();
            for (from, to) in [(&self.k, &mut target.k), (&self.v, &mut target.v)] {
                let from: &[u8] = bytemuck::cast_slice(from);
                let mut places: Vec<Option<&mut [u8]>> =
                    to.chunks_exact_mut(piece).map(Some).collect();
                for (i, from) in from.chunks_exact(piece).enumerate() {
                    let place = if scattered { self.order[start + i] as usize } else { start };
                    let to = places[place].take().expect("blocks differ");
                    // A thread's part at a time, where the piece is the whole.
                    let part = if scattered { piece } else { piece.div_ceil(side.cpu.threads()) };
                    jobs.extend(from.chunks(part).zip(to.chunks_mut(part)));
                }
            }
            let share = jobs.len().div_ceil(side.cpu.threads());
            spent += time(|| {
                side.pool.install(|| {
                    jobs.par_chunks_mut(share).for_each(|jobs| {
                        jobs.iter_mut().for_each(|(from, to)| to.copy_from_slice(from));
                    });
                });
            });
            runs += 1;
        }
        black_box(&target.k[0]);
        (2 * bytes * runs) as f64 / spent / 1e9
    }
}

struct Appends {
    source: Copies,
    dtype: DType,
    layout: KvLayout,
    slots: Vec<Vec<i64>>,
    positions: Vec<u32>,
    cos_sin: Vec<f32>,
    turn: usize,
}

impl Appends {
    fn new(bench: &Bench, tokens: usize, from: DType, into: DType, rope: bool) -> Self {
        let shape =
            CacheShape { dtype: into, hnd: false, block_size: BLOCK, heads: HEADS, head_dim: DIM };
        let layout = bench.target.layout(&shape);
        let order = shuffled(layout.num_blocks);
        let slot = |i: usize, block: u32| (block as usize * BLOCK + i % BLOCK) as i64;
        let slots = if tokens < 1024 {
            // Decode: each token in a block of its own.
            order
                .chunks_exact(tokens)
                .map(|set| (0..tokens).map(|i| slot(i, set[i])).collect())
                .collect()
        } else {
            order
                .chunks_exact(tokens / BLOCK)
                .map(|set| (0..tokens).map(|i| slot(i, set[i / BLOCK])).collect())
                .collect()
        };
        let (mut positions, mut cos_sin) = (Vec::new(), Vec::new());
        if rope {
            positions = (0..tokens as u32).collect();
            for position in 0..tokens {
                let angle =
                    |i: usize| position as f32 * 10_000.0_f32.powf(-2.0 * i as f32 / DIM as f32);
                cos_sin.extend((0..DIM / 2).map(|i| angle(i).cos()));
                cos_sin.extend((0..DIM / 2).map(|i| angle(i).sin()));
            }
        }
        let source = Copies::new(tokens, from);
        Self { source, dtype: from, layout, slots, positions, cos_sin, turn: 0 }
    }

    /// Seconds a call.
    fn run(&mut self, bench: &mut Bench) -> Result<f64> {
        let tokens = self.slots[0].len();
        let shape = Shape::contiguous(tokens, HEADS, DIM);
        let mut cache = bench.target.cache(self.layout)?;
        let (mut spent, mut runs) = (0.0, 0);
        while spent < LEAST && runs < 2000 {
            self.turn = (self.turn + 1) % self.slots.len();
            let k = tensor(&self.source.k, self.dtype, shape)?;
            let v = tensor(&self.source.v, self.dtype, shape)?;
            let mut args = Append::new(k, v, &self.slots[self.turn]);
            if self.layout.dtype == DType::Fp8E4m3 {
                args.scales = KvScales { k: &[0.5], v: &[0.5] };
            }
            if !self.positions.is_empty() {
                args.rope = Some(Rope {
                    positions: &self.positions,
                    cos_sin: &self.cos_sin,
                    rotary_dim: DIM,
                    pairs: RopePairs::Half,
                    q: None,
                });
            }
            let start = Instant::now();
            append(&bench.all.cpu, &mut cache, args)?;
            spent += start.elapsed().as_secs_f64();
            runs += 1;
        }
        Ok(spent / f64::from(runs))
    }
}

/// Kernels that move data.
pub(crate) fn kernels(cases: &mut Cases<'_>) -> Result<()> {
    let (f32, bf16, fp8) = (DType::F32, DType::Bf16, DType::Fp8E4m3);
    for (name, from, into, rope) in [
        ("append: 2048 tokens, bf16", bf16, bf16, false),
        ("append: 2048 tokens, f32", f32, f32, false),
        ("append: 2048 tokens, bf16 to fp8", bf16, fp8, false),
        ("append: 2048 tokens, bf16 with rope", bf16, bf16, true),
    ] {
        cases.add(name, |bench| {
            let mut appends = Appends::new(bench, 2048, from, into, rope);
            Ok(move |bench: &mut Bench| {
                let [whole, blocks] = appends.source.run(&bench.all, &mut bench.target);
                let copy = whole.max(blocks);
                let spent = appends.run(bench)?;
                let bytes = (appends.source.k.len() * 16) as f64;
                let sample = Sample::new(name, "GB/s", bytes / spent / 1e9)
                    .also(2048.0 / spent / 1e6, "Mtoken/s");
                let plain = from == into && !rope;
                let sample = match plain {
                    true => sample.want("copy, same size", copy, 0.7),
                    false => sample.of("copy, same size", copy).note("GB/s of what is read"),
                };
                Ok(vec![sample])
            })
        })?;
    }
    let name = "append: 32 tokens of decode, bf16";
    cases.add(name, |bench| {
        let mut appends = Appends::new(bench, 32, bf16, bf16, false);
        Ok(move |bench: &mut Bench| {
            let spent = appends.run(bench)?;
            Ok(vec![Sample::new(name, "us", spent * 1e6).note("128 KiB in all")])
        })
    })?;
    for (name, kind) in [
        ("move_blocks: 256 copies", BlockOp::COPY),
        ("move_blocks: 256 swapped out", BlockOp::SWAP_OUT),
    ] {
        cases.add(name, |bench| {
            let mut moves = Moves::new(bench, kind);
            Ok(move |bench: &mut Bench| {
                let copy = moves.plain(bench);
                let spent = moves.run(bench)?;
                let rate = moves.bytes() / spent / 1e9;
                let note = "blocks of 16, bf16: 16 MiB; both sides out of cache";
                Ok(vec![Sample::new(name, "GB/s", rate).of("copy by block, cold", copy).note(note)])
            })
        })?;
    }
    cases.add("merge: 2 states of 2048 tokens", |_| {
        let shape = Shape::contiguous(2048, 32, DIM);
        let mut states = [(); 2].map(|()| vec![0_u64; 2048 * 32 * DIM / 2]);
        for (i, state) in states.iter_mut().enumerate() {
            fill(bytemuck::cast_slice_mut(state), 31 + i as u64);
        }
        let (mut o, lse) = (states[0].clone(), vec![1.0_f32; 2048 * 32]);
        Ok(move |bench: &mut Bench| {
            let read = bench.read();
            let [a, b] = &states;
            let list = [
                State { o: tensor(a, DType::F32, shape)?, lse: &lse },
                State { o: tensor(b, DType::F32, shape)?, lse: &lse },
            ];
            let out = tensor_mut(&mut o, DType::F32, shape)?;
            let start = Instant::now();
            merge(&bench.all.cpu, &list, out, None)?;
            let spent = start.elapsed().as_secs_f64();
            let bytes = 3.0 * (a.len() * 8) as f64;
            let note = "f32, 32 heads, d 128; bytes read and written: 96 MiB";
            let sample = Sample::new("merge: 2 states of 2048 tokens", "GB/s", bytes / spent / 1e9);
            Ok(vec![sample.of("read", read).note(note)])
        })
    })
}

/// Block operations over all of the cache in turn.
struct Moves {
    layout: KvLayout,
    host: KvLayout,
    order: Vec<u32>,
    kind: u32,
    turn: usize,
}

impl Moves {
    const OPS: usize = 256;

    fn new(bench: &Bench, kind: u32) -> Self {
        let dtype = DType::Bf16;
        let shape =
            CacheShape { dtype, hnd: false, block_size: BLOCK, heads: HEADS, head_dim: DIM };
        let layout = bench.target.layout(&shape);
        let order = shuffled(layout.num_blocks);
        Self { layout, host: bench.arena.layout(&shape), order, kind, turn: 0 }
    }

    /// Bytes of K and V copied in a call.
    fn bytes(&self) -> f64 {
        (2 * Self::OPS * self.layout.k.block * 2) as f64
    }

    /// Blocks of the next turn: what is read, and what is written.
    fn next(&mut self) -> (Vec<u32>, Vec<u32>) {
        self.turn += 1;
        let sets = self.order.len() / (2 * Self::OPS);
        let set = &self.order[self.turn % sets * 2 * Self::OPS..][..2 * Self::OPS];
        (set[..Self::OPS].to_vec(), set[Self::OPS..].to_vec())
    }

    /// Seconds a call.
    fn run(&mut self, bench: &mut Bench) -> Result<f64> {
        let (mut spent, mut runs) = (0.0, 0);
        let Bench { arena, target, all, .. } = bench;
        let mut device = [target.cache(self.layout)?];
        let mut host = [arena.cache(self.host)?];
        while spent < LEAST {
            let (from, to) = self.next();
            let ops = from.iter().zip(&to);
            let ops: Vec<BlockOp> =
                ops.map(|(&src, &dst)| BlockOp { kind: self.kind, src, dst }).collect();
            let start = Instant::now();
            move_blocks(&all.cpu, &ops, &mut device, &mut host)?;
            spent += start.elapsed().as_secs_f64();
            runs += 1;
        }
        Ok(spent / f64::from(runs))
    }

    /// GB/s of memcpy for the same blocks of one cache.
    fn plain(&mut self, bench: &mut Bench) -> f64 {
        let (mut spent, mut runs) = (0.0, 0);
        let block = self.layout.k.block * 2;
        let Bench { target, all, .. } = bench;
        while spent < LEAST {
            let (from, to) = self.next();
            let mut jobs: Vec<(&[u8], &mut [u8])> = Vec::new();
            for side in [&mut target.k, &mut target.v] {
                let mut places: Vec<Option<&mut [u8]>> =
                    side.chunks_exact_mut(block).map(Some).collect();
                for (&from, &to) in from.iter().zip(&to) {
                    let from = places[from as usize].take().expect("blocks differ");
                    jobs.push((from, places[to as usize].take().expect("blocks differ")));
                }
            }
            let share = jobs.len().div_ceil(all.cpu.threads());
            spent += time(|| {
                all.pool.install(|| {
                    jobs.par_chunks_mut(share).for_each(|jobs| {
                        jobs.iter_mut().for_each(|(from, to)| to.copy_from_slice(from));
                    });
                });
            });
            runs += 1;
        }
        self.bytes() * f64::from(runs) / spent / 1e9
    }
}
