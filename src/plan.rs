//! How the attention of a step is divided among workers: cores of a CPU, SMs of a GPU.
//!
//! A row's queries are cut into tiles, and the tiles lie on a line in the order of their rows, each
//! as long as its cost. The line is cut into `shares` equal lengths, and a tile that a cut falls
//! into is computed in parts, whose results are merged in the order of their keys. So shares are
//! balanced whatever the lengths, and the same step always gives the same plan. (FlashMLA's
//! `get_mla_metadata` divides decode in this way.) Heavy rows are not moved to the front: simulated
//! workers, equally fast or not, then finish no more than 1% sooner.
//!
//! A cut moves to a multiple of the granularity or to an end of the tile, whichever loads the two
//! shares next to it least, counting that the second part pays a tile's overhead again. No part is
//! shorter than half the granularity, for it would not be worth its overhead. So a share costs at most an
//! even one, two overheads, and less than 1.5 times the granularity: 2 where a window begins a tile between
//! multiples.
//!
//! In batch-invariant mode tiles are split at fixed multiples instead: a request's parts depend on
//! its own lengths only, and shares, made of whole parts, cost at most an even one and one part.
//!
//! A plan is made once per step for each attention group of a model (layers of the same heads, window
//! and mask) and serves all its layers.

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::params::INFLIGHT_WHOLE;
pub use crate::params::{inflight_merge as Merge, inflight_part as Part};

/// What a plan is made for: one of these for each attention group of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanConfig {
    /// Shares to make; at least 1. Workers take them in order: as many as workers where these are
    /// equally fast, a few times as many where they are not.
    pub shares: u32,
    /// KV heads; at least 1.
    pub heads: u32,
    /// A tile of a row with at most this many queries computes all KV heads; 0 for never. Other
    /// tiles compute one.
    pub max_packed_q: u32,
    /// Queries of a tile at most; at least 1.
    pub q_tile: u32,
    /// Keys are cut at multiples of this many, counted from key 0; at least 1.
    pub kv_granularity: u32,
    /// Whether a query sees no key after its own position: query `i` of a row is at position
    /// `kv_len - q_len + i`, which is negative where keys are fewer.
    pub causal: bool,
    /// Keys a query sees before its own position; `None` for all.
    pub window_left: Option<u32>,
    /// Batch-invariant mode: parts end at multiples of this many keys, counted from key 0; itself
    /// a multiple of `kv_granularity`.
    pub fixed_split: Option<u32>,
    /// In batch-invariant mode only rows with at most this many queries are split: others have
    /// tiles enough, and as many states as queries times parts would fill gigabytes.
    pub split_q: u32,
    /// What work costs.
    pub costs: Costs,
}

/// What work costs, in any unit. A part costs
/// `tile + num_heads * keys * (key + query_key * q_len)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Costs {
    /// A part, whatever its size.
    pub tile: u32,
    /// A key, read for one head; not 0 if `query_key` is.
    pub key: u32,
    /// A query times a key.
    pub query_key: u32,
}

impl Default for Costs {
    /// A key read weighs as much as its product with a query, a part as much as 32 of both.
    fn default() -> Self {
        Self { tile: 64, key: 1, query_key: 1 }
    }
}

/// One row's extent, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Queries; a row without any has no part.
    pub q_len: u32,
    /// Keys, those of this step included.
    pub kv_len: u32,
}

impl Part {
    /// No states to merge: the part is its whole tile.
    pub const WHOLE: u32 = INFLIGHT_WHOLE;

    /// Its states, if it has any.
    fn states(&self) -> u64 {
        u64::from(self.q_len) * u64::from(self.num_heads)
    }

    fn keys(&self) -> u64 {
        u64::from(self.kv_end - self.kv_start)
    }

    /// Parts that end at multiples of `split`; 1 if it sees no key.
    fn count(&self, split: u32) -> u64 {
        u64::from(self.kv_end.div_ceil(split).saturating_sub(self.kv_start / split).max(1))
    }

    /// Cost of each key.
    fn key_cost(&self, costs: &Costs) -> u64 {
        let each = u64::from(costs.key) + u64::from(costs.query_key) * u64::from(self.q_len);
        each.saturating_mul(u64::from(self.num_heads))
    }
}

/// Who computes what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    parts: Vec<Part>,
    share_indptr: Vec<u32>,
    merges: Vec<Merge>,
    num_states: u32,
}

/// The most a plan can hold: what the buffers of a CUDA graph are made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlanBounds {
    /// Parts.
    pub parts: u64,
    /// Merges.
    pub merges: u64,
    /// States.
    pub states: u64,
}

impl PlanConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field.
    pub fn check(&self) -> Result<()> {
        let least_one = [
            ("shares", self.shares),
            ("heads", self.heads),
            ("q_tile", self.q_tile),
            ("kv_granularity", self.kv_granularity),
        ];
        if let Some((field, _)) = least_one.into_iter().find(|&(_, value)| value == 0) {
            return Err(Error::argument(field, "must be at least 1"));
        }
        if self.costs.key == 0 && self.costs.query_key == 0 {
            return Err(Error::argument("costs", "key and query_key are both 0"));
        }
        match self.fixed_split {
            Some(split) if split == 0 || split % self.kv_granularity != 0 => {
                let reason =
                    format!("{split} is not a positive multiple of {}", self.kv_granularity);
                Err(Error::argument("fixed_split", reason))
            }
            _ => Ok(()),
        }
    }

    /// The most that a plan of this configuration holds for at most `rows` rows of `q_tokens`
    /// queries together and `max_kv_len` keys each. All 0 if [`PlanConfig::check`] refuses it.
    #[must_use]
    pub fn bounds(&self, rows: u32, q_tokens: u32, max_kv_len: u32) -> PlanBounds {
        if self.check().is_err() {
            return PlanBounds::default();
        }
        let [rows, queries, heads] = [rows, q_tokens, self.heads].map(u64::from);
        let [max_packed_q, q_tile, kv_len] =
            [self.max_packed_q, self.q_tile, max_kv_len].map(u64::from);
        // Every row's last tile can be of one query.
        let q_tiles = |rows: u64| if rows == 0 { 0 } else { rows + (queries - rows) / q_tile };
        let any = q_tiles(rows.min(queries));
        let separate = q_tiles(rows.min(queries / (max_packed_q + 1))).saturating_mul(heads);
        let packed = if max_packed_q == 0 { 0 } else { any };
        let tiles = separate.saturating_add(packed).min(any.saturating_mul(heads));

        // Keys of a tile, where a window can let it begin anywhere.
        let tile_queries = q_tile.min(queries);
        let in_window = if self.causal { tile_queries } else { queries };
        let window = self.window_left.map(|window| kv_len.min(u64::from(window) + in_window));
        let query_heads = queries * heads;
        if let Some(split) = self.fixed_split.map(u64::from) {
            let parts =
                window.map_or(u64::MAX, |keys| (keys + split).saturating_sub(2) / split + 1);
            let each = parts.min(kv_len.div_ceil(split)).max(1);
            let split = rows.saturating_mul(self.split_q.into()).min(queries).saturating_mul(heads);
            let (merges, states) =
                if each > 1 { (tiles, split.saturating_mul(each)) } else { (0, 0) };
            return PlanBounds { parts: tiles.saturating_mul(each), merges, states };
        }
        let alignment = u64::from(self.kv_granularity);
        let half = alignment.div_ceil(2);
        let inside = |keys: u64| keys.checked_sub(2 * half).map_or(0, |rest| rest / alignment + 1);
        let each = window.map_or(u64::MAX, inside).min(kv_len.saturating_sub(half) / alignment);
        let cuts = u64::from(self.shares - 1).min(tiles.saturating_mul(each));
        let merges = cuts.min(tiles);
        // Of a tile's parts all but one need a cut, and tiles have no query and head in common.
        let most = tile_queries.max(tile_queries.min(max_packed_q).saturating_mul(heads));
        let first_parts = merges.saturating_mul(most).min(query_heads);
        let states = cuts.saturating_mul(most).saturating_add(first_parts);
        PlanBounds { parts: tiles.saturating_add(cuts), merges, states }
    }

    /// The keys that queries `start..end` of a row see, together.
    fn keys(&self, extent: Extent, start: u32, end: u32) -> (u32, u32) {
        let Extent { q_len, kv_len } = extent;
        let position = |query: u32| i64::from(kv_len) - i64::from(q_len) + i64::from(query);
        let last = if self.causal { position(end - 1) + 1 } else { i64::from(kv_len) };
        let first = self.window_left.map_or(0, |window| position(start) - i64::from(window));
        // Both are at most `kv_len`.
        (first.max(0) as u32, last.max(0) as u32)
    }

    /// The heads whose tiles of a row are computed apart, and the heads of a tile.
    fn heads_apart(&self, extent: Extent) -> (u32, u32) {
        if extent.q_len <= self.max_packed_q { (1, self.heads) } else { (self.heads, 1) }
    }

    /// The keys at whose multiples the tiles of a row are to be split.
    fn split_of(&self, extent: Extent) -> Option<u32> {
        // Nothing ends at a multiple of the largest number: such a tile is one part.
        let whole = extent.q_len > self.split_q;
        self.fixed_split.map(|split| if whole { u32::MAX } else { split })
    }

    /// Tiles of a row and head, each in one part: they follow one another, since they share keys.
    fn each_tile(&self, extent: Extent, (row, head): (u32, u32), mut then: impl FnMut(Part)) {
        let (_, num_heads) = self.heads_apart(extent);
        let (partial, merge) = (Part::WHOLE, Part::WHOLE);
        let mut q_start = 0;
        while q_start < extent.q_len {
            let q_len = self.q_tile.min(extent.q_len - q_start);
            let (kv_start, kv_end) = self.keys(extent, q_start, q_start + q_len);
            then(Part { row, head, num_heads, q_start, q_len, kv_start, kv_end, partial, merge });
            q_start += q_len;
        }
    }

    /// What a step costs before it is cut: the sum of its tiles, in the unit of `costs`.
    #[cfg(feature = "cuda-driver")]
    pub(crate) fn cost(&self, rows: impl Iterator<Item = Extent>) -> Result<u64> {
        self.check()?;
        self.measure(rows).map(|(total, ..)| total)
    }

    /// What all tiles cost, and the most parts and merges of them; refuses what would not fit.
    fn measure(&self, rows: impl Iterator<Item = Extent>) -> Result<(u64, u64, u64)> {
        let (mut total, mut parts, mut merges, mut states) = (Some(0_u64), 0, 0, 0_u64);
        let (mut query_heads, mut most) = (0_u64, 0);
        for extent in rows {
            let split = self.split_of(extent);
            // All heads of a row have the same tiles.
            let heads = u64::from(self.heads_apart(extent).0);
            self.each_tile(extent, (0, 0), |tile| {
                let count = split.map_or(1, |split| tile.count(split));
                let overheads = count * u64::from(self.costs.tile);
                let cost = tile.key_cost(&self.costs).checked_mul(tile.keys());
                let cost = cost.and_then(|cost| cost.checked_add(overheads)?.checked_mul(heads));
                total = total.and_then(|total| total.checked_add(cost?));
                parts += heads * count;
                let of_all = heads.saturating_mul(tile.states());
                if count > 1 {
                    merges += heads;
                    states = states.saturating_add(count.saturating_mul(of_all));
                }
                query_heads = query_heads.saturating_add(of_all);
                most = most.max(tile.states());
            });
        }
        if self.fixed_split.is_none() {
            let cuts = u64::from(self.shares - 1);
            merges = cuts.min(parts);
            let first_parts = merges.saturating_mul(most).min(query_heads);
            states = cuts.saturating_mul(most).saturating_add(first_parts);
            parts += cuts;
        }
        let total = total.ok_or_else(|| Error::argument("costs", "their sum exceeds 64 bits"))?;
        if parts.max(states) > u64::from(u32::MAX) {
            return Err(Error::argument("rows", "their parts or states may not fit 32 bits"));
        }
        Ok((total, parts, merges))
    }

    /// The key at which a tile at `begin..end` of the line is cut, where shares are to part at
    /// `cut`; `kv_start` for before the tile, `None` for after it.
    fn snap(&self, tile: &Part, key_cost: u64, begin: u64, end: u64, cut: u64) -> Option<u32> {
        // By how much the heavier of the two shares exceeds an even one, for each way to cut.
        let (before, after) = (cut.saturating_sub(begin), end - cut);
        let alignment = u64::from(self.kv_granularity);
        let half = alignment.div_ceil(2);
        let [kv_start, kv_end] = [tile.kv_start, tile.kv_end].map(u64::from);
        let least = (kv_start + half).next_multiple_of(alignment);
        let most = kv_end.saturating_sub(half) / alignment * alignment;
        if least <= most {
            let overhead = u64::from(self.costs.tile);
            let at = |key: u64| begin + overhead + (key - kv_start) * key_cost;
            let (offset, step) = (cut.saturating_sub(at(least)), alignment * key_cost);
            let nearest = offset / step + u64::from(offset % step > step / 2);
            let key = (least + nearest * alignment).min(most);
            // The share after the cut pays the tile's overhead once more.
            let inside = match at(key).checked_sub(cut) {
                Some(late) => late.max(overhead.saturating_sub(late)),
                None => (cut - at(key)).saturating_add(overhead),
            };
            if inside < before.min(after) {
                return Some(key as u32);
            }
        }
        (before <= after).then_some(tile.kv_start)
    }
}

impl Plan {
    /// Parts, share by share.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Shares; 0 before the first plan.
    pub(crate) fn num_shares(&self) -> usize {
        self.share_indptr.len().saturating_sub(1)
    }

    /// Share `s` has parts `share_indptr[s]..share_indptr[s + 1]`; maybe none.
    #[must_use]
    pub fn share_indptr(&self) -> &[u32] {
        &self.share_indptr
    }

    /// The parts of one share.
    ///
    /// # Panics
    /// If there is no such share.
    #[must_use]
    pub fn share(&self, share: usize) -> &[Part] {
        &self.parts[self.share_indptr[share] as usize..self.share_indptr[share + 1] as usize]
    }

    /// Tiles computed in parts.
    #[must_use]
    pub fn merges(&self) -> &[Merge] {
        &self.merges
    }

    /// States, one for each query and KV head of each part that is not a whole tile.
    #[must_use]
    pub fn num_states(&self) -> u32 {
        self.num_states
    }

    /// Plans a step. Buffers are reused: planning steps of like size does not allocate.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `config`, or `rows` where their parts or
    /// states may not fit 32 bits; the plan is as it was.
    pub fn make(
        &mut self,
        config: &PlanConfig,
        rows: impl Iterator<Item = Extent> + Clone,
    ) -> Result<()> {
        config.check()?;
        let (total, parts, merges) = config.measure(rows.clone())?;
        self.parts.clear();
        self.merges.clear();
        self.share_indptr.clear();
        self.parts.reserve(parts as usize);
        self.merges.reserve(merges as usize);
        self.share_indptr.reserve(config.shares as usize + 1);
        self.share_indptr.push(0);
        self.num_states = 0;
        let mut line = Line::new(total, config.shares);
        for (row, extent) in (0..).zip(rows) {
            let split = config.split_of(extent);
            let heads = config.heads_apart(extent).0;
            let mut place = |tile: Part| match split {
                Some(split) => self.place_fixed(config, tile, split, &mut line),
                None => self.place_cut(config, tile, &mut line),
            };
            if extent.q_len <= config.q_tile {
                // One tile a head, and the same for all: decode.
                config.each_tile(extent, (row, 0), |tile| {
                    (0..heads).for_each(|head| place(Part { head, ..tile }));
                });
                continue;
            }
            for head in 0..heads {
                config.each_tile(extent, (row, head), &mut place);
            }
        }
        self.share_indptr.resize(config.shares as usize + 1, self.parts.len() as u32);
        Ok(())
    }

    /// Places a tile in parts that end at multiples of `split`.
    fn place_fixed(&mut self, config: &PlanConfig, tile: Part, split: u32, line: &mut Line) {
        let first_part = self.parts.len();
        let key_cost = tile.key_cost(&config.costs);
        let mut start = tile.kv_start;
        for _ in 0..tile.count(split) {
            let end = (start / split + 1).saturating_mul(split).min(tile.kv_end);
            let cost = u64::from(config.costs.tile) + u64::from(end - start) * key_cost;
            // The share ends at the nearer end of the part.
            while line.cut_is_before(line.done + cost.div_ceil(2)) {
                self.end_share(line);
            }
            self.parts.push(Part { kv_start: start, kv_end: end, ..tile });
            line.done += cost;
            start = end;
        }
        self.number(tile, first_part);
    }

    /// Places a tile, cut where shares end.
    fn place_cut(&mut self, config: &PlanConfig, tile: Part, line: &mut Line) {
        let first_part = self.parts.len();
        let key_cost = tile.key_cost(&config.costs);
        let begin = line.done;
        line.done += u64::from(config.costs.tile) + tile.keys() * key_cost;
        if !line.cut_is_before(line.done) {
            self.parts.push(tile);
            return;
        }
        let mut start = tile.kv_start;
        while line.cut_is_before(line.done) {
            let Some(key) = config.snap(&tile, key_cost, begin, line.done, line.cut) else {
                break;
            };
            if key > start {
                self.parts.push(Part { kv_start: start, kv_end: key, ..tile });
                start = key;
            }
            self.end_share(line);
        }
        self.parts.push(Part { kv_start: start, ..tile });
        self.number(tile, first_part);
    }

    fn end_share(&mut self, line: &mut Line) {
        self.share_indptr.push(self.parts.len() as u32);
        line.next();
    }

    /// Numbers the states of a tile whose parts are those from `first_part`.
    fn number(&mut self, tile: Part, first_part: usize) {
        let parts = &mut self.parts[first_part..];
        if parts.len() == 1 {
            return;
        }
        let Part { row, head, num_heads, q_start, q_len, .. } = tile;
        let (partial, merge) = (self.num_states, self.merges.len() as u32);
        let (count, first_part) = (parts.len() as u32, first_part as u32);
        for part in parts {
            (part.partial, part.merge) = (self.num_states, merge);
            self.num_states += tile.states() as u32;
        }
        let tile = Merge { row, head, num_heads, q_start, q_len, partial, count, first_part };
        self.merges.push(tile);
    }
}

/// The line of all tiles, cut into even shares.
struct Line {
    /// Length of the tiles placed so far.
    done: u64,
    total: u64,
    shares: u64,
    /// Number of the next cut, from 1.
    number: u64,
    /// Where it is.
    cut: u64,
}

impl Line {
    fn new(total: u64, shares: u32) -> Self {
        let mut line = Self { done: 0, total, shares: u64::from(shares), number: 0, cut: 0 };
        line.next();
        line
    }

    fn next(&mut self) {
        self.number += 1;
        // `total * number / shares`, in 64 bits.
        let (each, rest) = (self.total / self.shares, self.total % self.shares);
        self.cut = each * self.number + rest * self.number / self.shares;
    }

    fn cut_is_before(&self, at: u64) -> bool {
        self.number < self.shares && self.cut < at
    }
}
