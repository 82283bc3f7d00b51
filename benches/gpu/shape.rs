//! What is measured: batches by their lengths, and the lists of them.

use inflight::kernels::DType;

use crate::common::Rng;

/// What a case is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// Reading as many bytes as the cache's visible keys have.
    Read,
    /// Products of tensor cores by `mma.sync`.
    Mma,
}

/// A batch of attention.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) name: String,
    /// Queries and keys of each row.
    pub(crate) rows: Vec<(usize, usize)>,
    /// Of queries, and of keys and values.
    pub(crate) heads: (usize, usize),
    pub(crate) dim: usize,
    pub(crate) block_size: usize,
    pub(crate) kv: DType,
    pub(crate) causal: bool,
    pub(crate) limits: &'static [Limit],
}

impl Shape {
    fn new(kind: &str, what: &str, rows: Vec<(usize, usize)>, like: &Like) -> Self {
        let Like { heads, dim, block_size, kv, causal, limits } = *like;
        let full = if causal { "" } else { " full" };
        let kv_name = kv.name();
        let name =
            format!("{kind} {what} {}/{} d{dim} bs{block_size} {kv_name}{full}", heads.0, heads.1);
        Self { name, rows, heads, dim, block_size, kv, causal, limits }
    }

    pub(crate) fn tokens(&self) -> usize {
        self.rows.iter().map(|row| row.0).sum()
    }

    /// Bytes of K and V of all rows' keys, each once.
    pub(crate) fn kv_bytes(&self) -> usize {
        let keys: usize = self.rows.iter().map(|row| row.1).sum();
        2 * keys * self.heads.1 * self.dim * self.kv.size()
    }

    /// Those, and queries and outputs.
    pub(crate) fn bytes(&self) -> usize {
        self.kv_bytes() + 4 * self.tokens() * self.heads.0 * self.dim
    }

    /// Operations on keys that queries see.
    pub(crate) fn operations(&self) -> f64 {
        let seen = |&(q, kv): &(usize, usize)| match self.causal {
            true => (0..q).map(|i| (kv + i + 1).saturating_sub(q) as f64).sum::<f64>(),
            false => (q * kv) as f64,
        };
        4.0 * (self.heads.0 * self.dim) as f64 * self.rows.iter().map(seen).sum::<f64>()
    }

    /// The same with few and short rows, for comparing numbers.
    pub(crate) fn small(&self) -> Self {
        let mut rows = self.rows.clone();
        // The longest and the most queries among them.
        rows.sort_by_key(|row| std::cmp::Reverse(*row));
        let picked: Vec<_> = [0, rows.len() / 2, rows.len() - 1].map(|at| rows[at]).into();
        let cut = |(q, kv): (usize, usize)| {
            let q = q.min(70);
            (q, kv.min(150 + q).max(q))
        };
        Self { rows: picked.into_iter().map(cut).collect(), ..self.clone() }
    }
}

/// All of a shape but its rows.
#[derive(Clone, Copy)]
struct Like {
    heads: (usize, usize),
    dim: usize,
    block_size: usize,
    kv: DType,
    causal: bool,
    limits: &'static [Limit],
}

const DECODE: Like = Like {
    heads: (32, 8),
    dim: 128,
    block_size: 16,
    kv: DType::Bf16,
    causal: true,
    limits: &[Limit::Read],
};
const PREFILL: Like = Like { heads: (64, 8), limits: &[Limit::Mma], ..DECODE };
const MIXED: Like = Like { limits: &[Limit::Read, Limit::Mma], ..DECODE };

const BATCHES: [usize; 6] = [1, 8, 16, 32, 64, 128];
const LENGTHS: [usize; 4] = [1 << 10, 4 << 10, 16 << 10, 32 << 10];
const HEADS: [(usize, usize); 4] = [(32, 8), (64, 8), (8, 1), (32, 32)];
const BLOCK_SIZES: [usize; 5] = [1, 8, 16, 64, 128];
const CACHES: [DType; 2] = [DType::Bf16, DType::Fp8E4m3];
const PATTERNS: [&str; 5] = ["constant", "uniform", "longtail", "bimodal", "skew"];

/// Mixtures of prompts, chunks and decode rows, as vLLM's benches name them.
const SPECS: [&str; 6] = [
    "q512s2k_31q1s1k",
    "2q2k_32q1s1k",
    "q1k_63q1s2k",
    "q257_7q1s1057_3q4s2051_2q129s4093",
    "64q4s4k",
    "8q256s4k",
];

/// The cases that tell most, where there is time for few: in this order, as far as they are attention.
pub(crate) const TELLING: [&str; 20] = [
    "decode b128 kv4096 constant 32/8 d128 bs16 bf16",
    "prefill b1 s8192 64/8 d128 bs16 bf16",
    "decode b16 kv4096 constant 32/8 d128 bs16 bf16",
    "decode b128 kv4096 constant 32/8 d128 bs16 fp8-e4m3",
    "mixed 2q2k_32q1s1k 32/8 d128 bs16 bf16",
    "decode b1 kv4096 constant 32/8 d128 bs16 bf16",
    "decode b1 kv32768 constant 32/8 d128 bs16 bf16",
    "decode b128 kv4096 constant 64/8 d128 bs16 bf16",
    "decode b128 kv4096 constant 32/32 d128 bs16 bf16",
    "decode b128 kv4096 constant 32/8 d128 bs1 bf16",
    "decode b128 kv4096 skew 32/8 d128 bs16 bf16",
    "decode b64 kv4096 constant 32/8 d256 bs16 bf16",
    "decode b16 kv2000 constant 32/32 d128 bs8 bf16",
    "prefill b1 s2048 64/8 d128 bs16 bf16",
    "prefill b1 s8192 64/8 d64 bs16 bf16",
    "prefill b1 s4096 64/8 d128 bs16 fp8-e4m3",
    "prefill b8 s2048 16/16 d128 bs16 bf16",
    "mixed q512s2k_31q1s1k 32/8 d128 bs16 bf16",
    "append t2048 32/8 d128 bf16",
    "merge 8 states t2048 h32 d128 bf16",
];

/// All shapes: a sensible part of the decode shapes, or their product.
pub(crate) fn all(full: bool) -> Vec<Shape> {
    let mut shapes = decode(full);
    for causal in [true, false] {
        for len in [2, 4, 8, 16].map(|k| k << 10) {
            shapes.push(prefill(1, len, &Like { causal, ..PREFILL }));
        }
    }
    for dim in [64, 256] {
        for len in [2 << 10, 8 << 10] {
            shapes.push(prefill(1, len, &Like { dim, ..PREFILL }));
        }
    }
    shapes.push(prefill(1, 4 << 10, &Like { kv: DType::Fp8E4m3, ..PREFILL }));
    // 16k tokens and 2,048 numbers of all heads, no grouping: shapes of FlashAttention's figures.
    for dim in [64, 128, 256] {
        for batch in [8, 1] {
            let heads = (2048 / dim, 2048 / dim);
            shapes.push(prefill(batch, (16 << 10) / batch, &Like { dim, heads, ..PREFILL }));
        }
    }
    shapes.extend(SPECS.iter().filter_map(|text| spec(text)));
    shapes
}

/// Few and tiny ones of every kind.
pub(crate) fn tiny() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for (n, pattern) in PATTERNS.into_iter().enumerate() {
        let like =
            Like { block_size: BLOCK_SIZES[n], heads: HEADS[n % 4], kv: CACHES[n % 2], ..DECODE };
        shapes.push(decode_of(3, 40, pattern, &like));
    }
    for dim in [64, 128, 256] {
        shapes.push(prefill(1, 33, &Like { dim, heads: (8, 2), causal: dim != 64, ..PREFILL }));
    }
    shapes.extend(["q40s90_3q1s50", "2q20_4q4s30"].iter().filter_map(|text| spec(text)));
    shapes
}

fn decode(full: bool) -> Vec<Shape> {
    let mut shapes = Vec::new();
    let mut add = |batch, len, pattern: &str, like: Like| {
        let shape = decode_of(batch, len, pattern, &like);
        if !shapes.iter().any(|old: &Shape| old.name == shape.name) {
            shapes.push(shape);
        }
    };
    for batch in BATCHES {
        for len in LENGTHS {
            add(batch, len, "constant", DECODE);
        }
    }
    for heads in HEADS {
        for batch in [1, 16, 128] {
            for len in [4 << 10, 16 << 10] {
                add(batch, len, "constant", Like { heads, ..DECODE });
            }
        }
    }
    for block_size in BLOCK_SIZES {
        for batch in [16, 128] {
            add(batch, 4 << 10, "constant", Like { block_size, ..DECODE });
        }
    }
    for (batch, len) in [(1, 4 << 10), (16, 4 << 10), (16, 16 << 10), (128, 4 << 10)] {
        add(batch, len, "constant", Like { kv: DType::Fp8E4m3, ..DECODE });
    }
    for kv in CACHES {
        for pattern in PATTERNS {
            for batch in [32, 128] {
                add(batch, 4 << 10, pattern, Like { kv, ..DECODE });
            }
        }
    }
    for dim in [64, 256] {
        add(64, 4 << 10, "constant", Like { dim, ..DECODE });
    }
    for len in [128, 2000, 4000] {
        add(16, len, "constant", Like { heads: (32, 32), block_size: 8, ..DECODE });
    }
    if full {
        for heads in HEADS {
            for block_size in BLOCK_SIZES {
                for kv in CACHES {
                    for (batch, len) in BATCHES.into_iter().flat_map(|b| LENGTHS.map(|l| (b, l))) {
                        add(batch, len, "constant", Like { heads, block_size, kv, ..DECODE });
                    }
                }
            }
        }
    }
    shapes
}

fn decode_of(batch: usize, len: usize, pattern: &str, like: &Like) -> Shape {
    let rows = lengths(pattern, batch, len).into_iter().map(|kv| (1, kv)).collect();
    Shape::new("decode", &format!("b{batch} kv{len} {pattern}"), rows, like)
}

fn prefill(batch: usize, len: usize, like: &Like) -> Shape {
    Shape::new("prefill", &format!("b{batch} s{len}"), vec![(len, len); batch], like)
}

/// `2q2k_32q1s1k`: 2 prompts of 2,048 tokens and 32 rows of 1 query, the last of 1,024 keys.
pub(crate) fn spec(text: &str) -> Option<Shape> {
    let number = |text: &str| match text.strip_suffix('k') {
        Some(text) => text.parse::<usize>().ok().map(|n| n << 10),
        None => text.parse().ok(),
    };
    let mut rows = Vec::new();
    for part in text.split('_') {
        let (count, lengths) = part.split_once('q')?;
        let (q, kv) = lengths.split_once('s').unwrap_or((lengths, lengths));
        let (q, kv) = (number(q)?, number(kv)?);
        let count = if count.is_empty() { 1 } else { count.parse().ok()? };
        if q == 0 || kv < q || count == 0 {
            return None;
        }
        rows.extend(vec![(q, kv); count]);
    }
    Some(Shape::new("mixed", text, rows, &MIXED))
}

/// Lengths of `batch` rows, about `mean * batch` in all.
fn lengths(pattern: &str, batch: usize, mean: usize) -> Vec<usize> {
    let mut rng = Rng(7);
    let mut unit = || (rng.next() >> 11) as f64 / (1_u64 << 53) as f64;
    let weights: Vec<f64> = (0..batch)
        .map(|row| match pattern {
            "uniform" => 0.1 + 1.8 * unit(),
            // One in eight long, others a sixteenth to an eighth of it.
            "longtail" if row % 8 == 0 => 1.0,
            "longtail" => (1.0 + unit()) / 16.0,
            "bimodal" => [1.0, 0.125][row % 2],
            // Half of all tokens are one row's.
            "skew" if row == 0 => batch.saturating_sub(1).max(1) as f64,
            _ => 1.0,
        })
        .collect();
    let all = (batch * mean) as f64 / weights.iter().sum::<f64>();
    weights.into_iter().map(|weight| ((weight * all) as usize).max(1)).collect()
}
