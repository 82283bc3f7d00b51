//! Attention against the reference.

use inflight::kernels::{AttentionConfig, BatchView, DType, KvLayout, Mask};
use inflight::{BlockId, Result};

use super::device::Step;
use super::reference::{self, Features, Heads, Row};
use super::{Device, Outcome, Worst, random};
use crate::tensor::Tensor;
use crate::trace::SplitMix64;

const KV_HEADS: usize = 2;
/// Of K, then of V, a head each, where the cache is fp8.
const SCALES: [[f32; KV_HEADS]; 2] = [[1.0 / 64.0, 1.0 / 32.0], [1.0 / 128.0, 1.0 / 64.0]];

/// Queries and keys of each row.
type Rows = &'static [(usize, usize)];

const PREFILL: Rows = &[(1, 1), (17, 17), (70, 70), (130, 130)];
const CHUNKED: Rows = &[(33, 200), (5, 64), (64, 65)];
const DECODE: Rows = &[(1, 1), (1, 16), (1, 17), (1, 500), (1, 1100)];
const MIXED: Rows = &[(40, 40), (1, 300), (20, 150), (1, 33), (0, 0), (2, 90), (0, 0)];

/// (block size, query heads a KV head, head dimension).
const GEOMETRIES: [(usize, usize, usize); 6] =
    [(16, 1, 128), (1, 4, 64), (16, 7, 80), (1, 1, 80), (16, 4, 128), (1, 7, 64)];

/// (type of queries and outputs, type of the cache, bound of errors). Outputs are at most 1: what
/// is allowed is a rounding to the type or two, and in f32 the order of sums.
const TYPES: [(DType, DType, f64); 4] = [
    (DType::F32, DType::F32, 2e-5),
    (DType::F16, DType::F16, 1e-3),
    (DType::Bf16, DType::Bf16, 8e-3),
    (DType::Bf16, DType::Fp8E4m3, 8e-3),
];

/// All cases of attention.
pub(super) fn run(device: &Device, outcomes: &mut Vec<Outcome>) {
    let causal = Features { causal: true, ..Features::default() };
    let kinds = [("prefill", PREFILL), ("chunked", CHUNKED), ("decode", DECODE), ("mixed", MIXED)];
    for (name, rows) in kinds {
        of_all_types(device, outcomes, name, rows, &causal, &GEOMETRIES);
    }
    let features = [
        ("not causal", Features::default()),
        ("window", Features { window_left: Some(19), ..causal.clone() }),
        ("soft cap", Features { soft_cap: Some(0.75), ..causal.clone() }),
        ("ALiBi", Features { slopes: Some(Vec::new()), ..causal.clone() }),
        ("sinks", Features { sinks: Some(Vec::new()), ..causal.clone() }),
        ("mask", Features { mask: Some((40, sees)), ..Features::default() }),
        (
            "all of these",
            Features {
                causal: true,
                window_left: Some(31),
                soft_cap: Some(2.0),
                slopes: Some(Vec::new()),
                sinks: Some(Vec::new()),
                mask: Some((70, sees)),
            },
        ),
    ];
    for (name, features) in &features {
        of_all_types(device, outcomes, name, MIXED, features, &GEOMETRIES[1..4]);
    }
    for (q_dtype, kv_dtype, _) in TYPES.into_iter().filter(|types| device.has(types.0)) {
        let differing = alone(device, q_dtype, kv_dtype);
        let types = (q_dtype, kv_dtype);
        outcomes.push(Outcome::new("attention, a row alone, bit by bit", types, 0.0, differing));
    }
}

/// Hides every key from some queries.
fn sees(query: usize, key: usize) -> bool {
    query % 5 != 3 && !(query * 7 + key * 3).is_multiple_of(4)
}

fn of_all_types(
    device: &Device,
    outcomes: &mut Vec<Outcome>,
    name: &str,
    rows: Rows,
    features: &Features,
    geometries: &[(usize, usize, usize)],
) {
    for (q_dtype, kv_dtype, bound) in TYPES.into_iter().filter(|types| device.has(types.0)) {
        let mut worst = Worst::default();
        let compared = geometries.iter().enumerate().try_for_each(|(i, &geometry)| {
            let world = World::new((q_dtype, kv_dtype), rows, geometry, i % 3 == 2)?;
            let features = world.heads_of(features);
            world.compare(device, &features, &mut worst)
        });
        let outcome = compared.map(|()| worst);
        let name = format!("attention, {name}");
        outcomes.push(Outcome::new(&name, (q_dtype, kv_dtype), bound, outcome));
    }
}

/// Bytes of a row's output that differ when the row is computed without the others.
fn alone(device: &Device, q_dtype: DType, kv_dtype: DType) -> Result<Worst> {
    let mut worst = Worst::default();
    let causal = Features { causal: true, ..Features::default() };
    let rows: Rows = &[(3, 700), (1, 1100), (140, 150), (1, 33)];
    for geometry in [GEOMETRIES[1], GEOMETRIES[4]] {
        let world = World::new((q_dtype, kv_dtype), rows, geometry, false)?;
        let fixed = AttentionConfig { fixed_split: Some(128), ..world.config(&causal) };
        let (together, _) = world.run(device, &causal, fixed, 0..rows.len())?;
        let token = world.q.heads * world.q.dim * q_dtype.size();
        let mut start = 0;
        for (row, &(q_len, _)) in rows.iter().enumerate() {
            let (own, _) = world.run(device, &causal, fixed, row..row + 1)?;
            let same = &together.bytes()[start..start + q_len * token];
            let differ = own.bytes().iter().zip(same).filter(|(a, b)| a != b).count();
            worst.add(differ as f64, 0.0);
            start += q_len * token;
        }
    }
    Ok(worst)
}

/// A batch, its cache, and the same numbers for the reference.
struct World {
    types: (DType, DType),
    rows: Vec<Row>,
    layout: KvLayout,
    /// Each row's blocks.
    tables: Vec<Vec<BlockId>>,
    queries: Tensor,
    q: Heads,
    keys: Tensor,
    values: Tensor,
    /// K and V of each row as the kernel must read them.
    kv: Vec<(Heads, Heads)>,
}

impl World {
    /// Random numbers; whatever no row owns is NaN.
    fn new(
        types: (DType, DType),
        rows: Rows,
        (block_size, group, dim): (usize, usize, usize),
        hnd: bool,
    ) -> Result<Self> {
        let mut rng = SplitMix64::new((block_size * 1000 + group * 100 + dim) as u64);
        let rows: Vec<Row> = rows.iter().map(|&(q_len, kv_len)| Row { q_len, kv_len }).collect();
        let blocks: usize = rows.iter().map(|row| row.kv_len.div_ceil(block_size)).sum();
        let num_blocks = blocks + 3;
        let make = if hnd { KvLayout::hnd } else { KvLayout::nhd };
        let layout = make(types.1, num_blocks, block_size, KV_HEADS, dim);
        let mut ids: Vec<u32> = (1..num_blocks as u32).collect();
        for last in (1..ids.len()).rev() {
            ids.swap(last, (rng.next() % (last as u64 + 1)) as usize);
        }
        let mut ids = ids.into_iter().map(BlockId);
        let table = |row: &Row| ids.by_ref().take(row.kv_len.div_ceil(block_size)).collect();
        let tables: Vec<Vec<BlockId>> = rows.iter().map(table).collect();

        let tokens = rows.iter().map(|row| row.q_len).sum();
        let (queries, q) = random(types.0, tokens, KV_HEADS * group, dim, &mut rng)?;
        let elements = layout.k_extent()?;
        let (mut keys, mut values) =
            (Tensor::zeros(types.1, elements)?, Tensor::zeros(types.1, elements)?);
        keys.bytes_mut().fill(0xff);
        values.bytes_mut().fill(0xff);
        let mut kv = Vec::new();
        for (row, table) in rows.iter().zip(&tables) {
            let mut fill = |cache: &mut Tensor, scales: [f32; KV_HEADS]| {
                let mut numbers = Vec::with_capacity(row.kv_len * KV_HEADS * dim);
                for token in 0..row.kv_len {
                    let (block, offset) = (table[token / block_size], token % block_size);
                    for (head, &scale) in scales.iter().enumerate() {
                        let scale = if types.1 == DType::Fp8E4m3 { f64::from(scale) } else { 1.0 };
                        let at = block.index() * layout.k.block
                            + offset * layout.k.token
                            + head * layout.k.head;
                        for at in at..at + dim {
                            cache.set(at, (2.0 * rng.unit() - 1.0) / scale);
                            numbers.push(cache.get(at) * scale);
                        }
                    }
                }
                Heads { heads: KV_HEADS, dim, numbers }
            };
            kv.push((fill(&mut keys, SCALES[0]), fill(&mut values, SCALES[1])));
        }
        Ok(Self { types, rows, layout, tables, queries, q, keys, values, kv })
    }

    /// Features with numbers for each of its heads.
    fn heads_of(&self, features: &Features) -> Features {
        let each = |of: fn(usize) -> f64| (0..self.q.heads).map(of).collect::<Vec<_>>();
        Features {
            slopes: features.slopes.as_ref().map(|_| each(|head| 0.5_f64.powi(head as i32 + 1))),
            sinks: features.sinks.as_ref().map(|_| each(|head| head as f64 * 0.5 - 1.0)),
            ..features.clone()
        }
    }

    fn config(&self, features: &Features) -> AttentionConfig {
        let (q_dtype, kv_dtype) = self.types;
        AttentionConfig {
            kv_dtype,
            causal: features.causal,
            window_left: features.window_left.map(|left| left as u32),
            soft_cap: features.soft_cap.map(|cap| cap as f32),
            ..AttentionConfig::new(self.q.heads, KV_HEADS, self.q.dim, q_dtype)
        }
    }

    /// Outputs and LSE of some of its rows.
    fn run(
        &self,
        device: &Device,
        features: &Features,
        config: AttentionConfig,
        rows: std::ops::Range<usize>,
    ) -> Result<(Tensor, Vec<f32>)> {
        let (mut qo_indptr, mut kv_indptr) = (vec![0], vec![0]);
        let (mut kv_indices, mut kv_last_page_len) = (Vec::new(), Vec::new());
        let (mut bits, mut mask_indptr, mut widths) = (Vec::new(), vec![0], Vec::new());
        let before: usize = self.rows[..rows.start].iter().map(|row| row.q_len).sum();
        let mut tokens = 0;
        for row in rows {
            let Row { q_len, kv_len } = self.rows[row];
            tokens += q_len;
            kv_indices.extend_from_slice(&self.tables[row]);
            qo_indptr.push(tokens as u32);
            kv_indptr.push(kv_indices.len() as u32);
            let last = kv_len.checked_sub(1).map_or(0, |last| last % self.layout.block_size + 1);
            kv_last_page_len.push(last as u32);
            let width = features.mask.map_or(0, |(width, _)| width.min(kv_len));
            widths.push(width as u32);
            for query in 0..q_len {
                for byte in 0..width.div_ceil(8) {
                    let seen = |bit: &usize| {
                        let key = byte * 8 + bit;
                        key < width && features.mask.is_some_and(|(_, sees)| sees(query, key))
                    };
                    bits.push((0..8).filter(seen).fold(0, |bits, bit| bits | 1_u8 << bit));
                }
            }
            mask_indptr.push(bits.len() as u32);
        }
        let view = BatchView {
            qo_indptr: &qo_indptr,
            kv_indptr: &kv_indptr,
            kv_indices: &kv_indices,
            kv_last_page_len: &kv_last_page_len,
            block_size: self.layout.block_size,
        };
        let token = self.q.heads * self.q.dim;
        let mut o = Tensor::zeros(self.types.0, tokens * token)?;
        o.bytes_mut().fill(0xff);
        let mut lse = vec![f32::NAN; tokens * self.q.heads];
        let narrow = |numbers: &Option<Vec<f64>>| {
            numbers.as_ref().map(|numbers| numbers.iter().map(|x| *x as f32).collect::<Vec<_>>())
        };
        let (slopes, sinks) = (narrow(&features.slopes), narrow(&features.sinks));
        let mask = Mask { bits: &bits, indptr: &mask_indptr, widths: &widths };
        let mask = features.mask.map(|_| mask);
        let fp8 = self.types.1 == DType::Fp8E4m3;
        let size = token * self.types.0.size();
        let step = Step {
            batch: view,
            mask,
            q: &self.queries.bytes()[before * size..(before + tokens) * size],
            cache: (&self.keys, &self.values),
            layout: self.layout,
            scales: if fp8 { [&SCALES[0], &SCALES[1]] } else { [&[], &[]] },
            slopes: slopes.as_deref(),
            sinks: sinks.as_deref(),
        };
        device.attention(config, &step, o.bytes_mut(), &mut lse)?;
        Ok((o, lse))
    }

    /// Runs all of it and compares it with the reference.
    fn compare(&self, device: &Device, features: &Features, worst: &mut Worst) -> Result<()> {
        let config = self.config(features);
        let (o, lse) = self.run(device, features, config, 0..self.rows.len())?;
        let group = self.q.heads / KV_HEADS;
        let mut token = 0;
        for (row, (k, v)) in self.rows.iter().zip(&self.kv) {
            for query in 0..row.q_len {
                for head in 0..self.q.heads {
                    let which = (query, head, head / group);
                    let scale = f64::from(config.scale);
                    let q = self.q.at(token, head);
                    let want = reference::attention(q, (k, v), *row, which, scale, features);
                    let at = token * self.q.heads + head;
                    worst.add(f64::from(lse[at]), want.lse);
                    for (i, want) in want.o.iter().enumerate() {
                        worst.add(o.get(at * self.q.dim + i), *want);
                    }
                }
                token += 1;
            }
        }
        Ok(())
    }
}
