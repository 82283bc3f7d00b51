//! A case: everything in memory that a call reads, made from a [`Spec`].

use inflight::device::cpu::Cpu;
use inflight::kernels::cpu::{Attention, AttentionArgs, StepBuffer};
use inflight::kernels::{
    self, AttentionConfig, BatchView, DType, KvCache, KvLayout, KvScales, KvStrides, StepArrays,
    StepLimits,
};
use inflight::{BlockId, Error};

use super::numbers::{Numbers, Tokens};
use super::spec::{Alibi, Layout, MaskKind, Scales, Sinks, Spec};
use crate::rng::Rng;

/// K and V of a layer.
#[derive(Clone)]
pub(crate) struct Cache {
    pub(crate) layout: KvLayout,
    k: Numbers,
    /// `None` if V is in K's memory.
    v: Option<Numbers>,
    v_start: usize,
}

impl Cache {
    fn new(spec: &Spec, num_blocks: usize) -> Self {
        let AttentionConfig { num_kv_heads: heads, head_dim, kv_dtype: dtype, .. } = spec.config;
        let bs = spec.block_size;
        // Rows begin at multiples of 16 bytes.
        let row = head_dim.next_multiple_of(16 / dtype.size());
        let nhd = |row: usize| KvStrides { block: bs * heads * row, token: heads * row, head: row };
        let hnd = |row: usize| KvStrides { block: bs * heads * row, token: row, head: bs * row };
        let block = bs * heads * row;
        let (k, v, v_start) = match spec.layout {
            Layout::Nhd => (nhd(row), nhd(row), None),
            Layout::Hnd => (hnd(row), hnd(row), None),
            Layout::Mixed => (hnd(row), nhd(row), None),
            Layout::Interleaved => {
                let strides = KvStrides { block: 2 * block, ..nhd(row) };
                (strides, strides, Some(block))
            }
            Layout::Halves => (hnd(row), hnd(row), Some(num_blocks * block)),
            Layout::Padded => {
                let (k, v) = (nhd(row + 16), hnd(row + 32));
                let k = KvStrides { token: k.token + 32, block: k.block + bs * 32 + 48, ..k };
                (k, KvStrides { head: v.head + 16, block: v.block + heads * 16, ..v }, None)
            }
        };
        let layout =
            KvLayout { dtype, num_blocks, block_size: bs, num_heads: heads, head_dim, k, v };
        let last = |s: KvStrides| {
            (num_blocks - 1) * s.block + (bs - 1) * s.token + (heads - 1) * s.head + head_dim
        };
        let numbers = |len: usize| Numbers::filled(dtype, len, spec.poison.byte());
        match v_start {
            Some(start) => Self { layout, k: numbers(start + last(v)), v: None, v_start: start },
            None => Self { layout, k: numbers(last(k)), v: Some(numbers(last(v))), v_start: 0 },
        }
    }

    fn k_at(&self, block: u32, offset: usize, head: usize) -> usize {
        let KvStrides { block: b, token, head: h } = self.layout.k;
        block as usize * b + offset * token + head * h
    }

    fn v_at(&self, block: u32, offset: usize, head: usize) -> usize {
        let KvStrides { block: b, token, head: h } = self.layout.v;
        self.v_start + block as usize * b + offset * token + head * h
    }

    fn v_numbers(&mut self) -> &mut Numbers {
        self.v.as_mut().unwrap_or(&mut self.k)
    }

    fn fill(&mut self, block: u32, offset: usize, rng: &mut Rng, k_scale: &[f32], v_scale: &[f32]) {
        for head in 0..self.layout.num_heads {
            let (k, v) = (self.k_at(block, offset, head), self.v_at(block, offset, head));
            for d in 0..self.layout.head_dim {
                self.k.set(k + d, normal(rng) / of_head(k_scale, head));
                self.v_numbers().set(v + d, normal(rng) / of_head(v_scale, head));
            }
        }
    }

    /// All bytes of K, those of V if they are apart, and else where V begins in K's.
    pub(crate) fn memory(&self) -> (&[u8], Option<&[u8]>, usize) {
        let start = self.v_start * self.layout.dtype.size();
        (self.k.bytes(), self.v.as_ref().map(Numbers::bytes), start)
    }

    pub(crate) fn view(&mut self) -> KvCache<'_> {
        let view = match &mut self.v {
            Some(v) => KvCache::new(self.k.bytes_mut(), v.bytes_mut(), self.layout),
            None => KvCache::combined(self.k.bytes_mut(), 0, self.v_start, self.layout),
        };
        view.expect("a sound layout")
    }

    /// Block `b` goes to `to[b]`.
    fn permuted(&self, to: &[u32]) -> Self {
        let mut moved = self.clone();
        for block in 0..self.layout.num_blocks as u32 {
            for (offset, head) in (0..self.layout.block_size * self.layout.num_heads)
                .map(|i| (i / self.layout.num_heads, i % self.layout.num_heads))
            {
                let there = to[block as usize];
                let (k, k2) = (self.k_at(block, offset, head), moved.k_at(there, offset, head));
                let (v, v2) = (self.v_at(block, offset, head), moved.v_at(there, offset, head));
                let size = self.layout.dtype.size();
                let row = self.layout.head_dim * size;
                let bytes = &self.k.bytes()[k * size..][..row];
                moved.k.bytes_mut()[k2 * size..][..row].copy_from_slice(bytes);
                let bytes = &self.v.as_ref().unwrap_or(&self.k).bytes()[v * size..][..row];
                moved.v_numbers().bytes_mut()[v2 * size..][..row].copy_from_slice(bytes);
            }
        }
        moved
    }
}

fn of_head(scales: &[f32], head: usize) -> f32 {
    match scales.len() {
        0 => 1.0,
        1 => scales[0],
        _ => scales[head],
    }
}

/// Of mean 0 and variance 1, within 3.5: the sum of four uniform numbers.
pub(crate) fn normal(rng: &mut Rng) -> f32 {
    let bits = rng.next();
    let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
    (sum as f32 / 65536.0 - 2.0) * 3.0_f32.sqrt()
}

#[derive(Clone, Default)]
pub(crate) struct Mask {
    pub(crate) bits: Vec<u8>,
    pub(crate) indptr: Vec<u32>,
    pub(crate) widths: Vec<u32>,
}

impl Mask {
    /// Whether query `i` of a row sees key `j` of its `kv_len`, as far as the mask is concerned.
    pub(crate) fn shows(&self, row: usize, i: usize, j: usize, kv_len: usize) -> bool {
        let width = self.widths[row] as usize;
        let Some(bit) = (j + width).checked_sub(kv_len) else { return true };
        let byte = self.indptr[row] as usize + i * width.div_ceil(8) + bit / 8;
        self.bits[byte] >> (bit % 8) & 1 == 1
    }

    pub(crate) fn new(kind: MaskKind, rows: &[(usize, usize)], rng: &mut Rng) -> Option<Self> {
        if kind == MaskKind::None {
            return None;
        }
        let mut mask = Self { indptr: vec![0], ..Self::default() };
        for &(q_len, kv_len) in rows {
            let width = match kind {
                MaskKind::None => 0,
                MaskKind::Tree => q_len.min(kv_len),
                MaskKind::Full | MaskKind::Nothing => kv_len,
                MaskKind::Any => rng.below(kv_len + 1),
            };
            if kind == MaskKind::Any {
                // Bytes of nobody.
                mask.bits.extend((0..rng.below(3)).map(|_| 0xaa));
                let start = mask.bits.len() as u32;
                *mask.indptr.last_mut().expect("there is one") = start;
            }
            let parents: Vec<usize> = (0..width).map(|i| rng.below(i.max(1))).collect();
            for i in 0..q_len {
                let mut sees: Vec<bool> = match kind {
                    MaskKind::Tree => vec![false; width],
                    MaskKind::Nothing if i % 2 == 1 => vec![false; width],
                    _ => (0..width).map(|_| rng.chance(60)).collect(),
                };
                if kind == MaskKind::Tree && i < width {
                    // A node, its parent, and so on to the root.
                    let mut node = i;
                    while !std::mem::replace(&mut sees[node], true) {
                        node = parents[node];
                    }
                }
                // What is left of the last byte is anything.
                sees.resize(width.next_multiple_of(8), rng.chance(50));
                let byte = |bits: &[bool]| (0..8).map(|b| u8::from(bits[b]) << b).sum::<u8>();
                mask.bits.extend(sees.chunks(8).map(byte));
            }
            mask.widths.push(width as u32);
            mask.indptr.push(mask.bits.len() as u32);
        }
        mask.bits.push(0xaa);
        Some(mask)
    }

    fn select(&self, order: &[usize], rows: &[(usize, usize)]) -> Self {
        let mut mask = Self { indptr: vec![0], ..Self::default() };
        for &row in order {
            let bytes = rows[row].0 * (self.widths[row] as usize).div_ceil(8);
            mask.bits.extend_from_slice(&self.bits[self.indptr[row] as usize..][..bytes]);
            mask.indptr.push(mask.bits.len() as u32);
            mask.widths.push(self.widths[row]);
        }
        mask
    }
}

/// What a call returned: `[token, head, dim]` and `[token, head]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) o: Vec<f32>,
    pub(crate) lse: Vec<f32>,
}

impl Answer {
    /// Every bit.
    pub(crate) fn bits(&self) -> Vec<u32> {
        self.o.iter().chain(&self.lse).map(|x| x.to_bits()).collect()
    }
}

#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) spec: Spec,
    pub(crate) rows: Vec<(usize, usize)>,
    pub(crate) qo_indptr: Vec<u32>,
    pub(crate) kv_indptr: Vec<u32>,
    pub(crate) kv_indices: Vec<BlockId>,
    pub(crate) kv_last_page_len: Vec<u32>,
    pub(crate) q: Tokens,
    pub(crate) cache: Cache,
    pub(crate) k_scale: Vec<f32>,
    pub(crate) v_scale: Vec<f32>,
    pub(crate) sinks: Option<Vec<f32>>,
    pub(crate) alibi: Option<Vec<f32>>,
    pub(crate) mask: Option<Mask>,
}

impl Case {
    pub(crate) fn new(spec: &Spec) -> Self {
        let mut rng = Rng::new(spec.seed);
        let rng = &mut rng;
        let (config, bs) = (spec.config, spec.block_size);
        let mut tables: Vec<Vec<u32>> = Vec::new();
        let mut blocks = 0..;
        for (row, &(_, kv_len)) in spec.rows.iter().enumerate() {
            let mut table = Vec::new();
            if spec.shared && row > 0 {
                let full = (kv_len / bs).min(spec.rows[row - 1].1 / bs);
                table.extend_from_slice(&tables[row - 1][..rng.below(full + 1)]);
            }
            table.extend(blocks.by_ref().take(kv_len.div_ceil(bs) - table.len()));
            // A full block may be there again.
            if spec.shared && kv_len / bs > 1 && rng.chance(30) {
                let again = rng.within(1, kv_len / bs - 1);
                table[again] = table[rng.below(again)];
            }
            tables.push(table);
        }
        let num_blocks = blocks.start as usize + rng.within(1, 4);
        let shuffled = permutation(num_blocks, rng);
        tables.iter_mut().flatten().for_each(|block| *block = shuffled[*block as usize]);

        let scales = |rng: &mut Rng| -> Vec<f32> {
            let n = match spec.scales {
                Scales::None => 0,
                Scales::PerTensor => 1,
                Scales::PerHead => config.num_kv_heads,
            };
            (0..n).map(|_| 2.0_f32.powf(rng.below(1000) as f32 / 100.0 - 6.0)).collect()
        };
        let (k_scale, v_scale) = (scales(rng), scales(rng));
        let mut cache = Cache::new(spec, num_blocks);
        let mut written = vec![false; num_blocks * bs];
        for (table, &(q_len, kv_len)) in tables.iter().zip(&spec.rows) {
            // Keys that no query's window reaches are as if evicted; without queries all are.
            let first = kv_len as i64 - q_len as i64;
            let evicted = config.window_left.map_or(0, |left| (first - i64::from(left)).max(0));
            let evicted = if q_len == 0 { kv_len } else { evicted as usize };
            for j in evicted..kv_len {
                let (block, offset) = (table[j / bs], j % bs);
                if !std::mem::replace(&mut written[block as usize * bs + offset], true) {
                    cache.fill(block, offset, rng, &k_scale, &v_scale);
                }
            }
        }

        let heads = config.num_q_heads;
        let tokens = spec.rows.iter().map(|row| row.0).sum();
        let mut q = Tokens::new(config.q_dtype, spec.q_layout, tokens, heads, config.head_dim);
        for at in 0..tokens * heads {
            for d in 0..config.head_dim {
                q.set(at / heads, at % heads, d, normal(rng) * spec.peak);
            }
        }
        let sinks = match spec.sinks {
            Sinks::None => None,
            kind => Some(
                (0..heads)
                    .map(|h| match kind {
                        Sinks::SomeNone if h % 2 == 0 => f32::NEG_INFINITY,
                        Sinks::Large => [20.0, 1e4, -1e4][h % 3],
                        _ => 2.0 * normal(rng),
                    })
                    .collect(),
            ),
        };
        let slope = |h: usize| match spec.alibi {
            Alibi::Steep => [1.5, -0.01, 0.0][h % 3],
            _ => 2.0_f32.powf(-8.0 * (h + 1) as f32 / heads as f32),
        };
        let alibi = (spec.alibi != Alibi::None).then(|| (0..heads).map(slope).collect());
        let mut case = Self {
            rows: spec.rows.clone(),
            qo_indptr: vec![],
            kv_indptr: vec![],
            kv_indices: vec![],
            kv_last_page_len: vec![],
            q,
            cache,
            k_scale,
            v_scale,
            sinks,
            alibi,
            mask: Mask::new(spec.mask, &spec.rows, rng),
            spec: spec.clone(),
        };
        case.index(&tables);
        case
    }

    fn index(&mut self, tables: &[Vec<u32>]) {
        let bs = self.spec.block_size;
        let (mut q_end, mut kv_end) = (0, 0);
        (self.qo_indptr, self.kv_indptr) = (vec![0], vec![0]);
        (self.kv_indices, self.kv_last_page_len) = (vec![], vec![]);
        for (table, &(q_len, kv_len)) in tables.iter().zip(&self.rows) {
            q_end += q_len as u32;
            kv_end += table.len() as u32;
            self.qo_indptr.push(q_end);
            self.kv_indptr.push(kv_end);
            self.kv_indices.extend(table.iter().map(|&block| BlockId(block)));
            self.kv_last_page_len.push(kv_len.checked_sub(1).map_or(0, |n| (n % bs + 1) as u32));
        }
        // Entries of nobody: never looked at.
        self.kv_indices.extend([BlockId(u32::MAX); 3]);
    }

    pub(crate) fn table(&self, row: usize) -> Vec<u32> {
        let range = self.kv_indptr[row] as usize..self.kv_indptr[row + 1] as usize;
        self.kv_indices[range].iter().map(|block| block.0).collect()
    }

    /// A batch of these rows over the same cache.
    pub(crate) fn select(&self, order: &[usize]) -> Self {
        let mut part = self.clone();
        let tables: Vec<_> = order.iter().map(|&row| self.table(row)).collect();
        part.rows = order.iter().map(|&row| self.rows[row]).collect();
        part.index(&tables);
        let tokens: Vec<usize> = order.iter().flat_map(|&row| self.tokens(row)).collect();
        let AttentionConfig { num_q_heads, head_dim, q_dtype, .. } = self.spec.config;
        part.q = Tokens::new(q_dtype, self.spec.q_layout, tokens.len(), num_q_heads, head_dim);
        for (new, &old) in tokens.iter().enumerate() {
            for head in 0..num_q_heads {
                for (d, x) in self.q.row(old, head).into_iter().enumerate() {
                    part.q.set(new, head, d, x);
                }
            }
        }
        part.mask = self.mask.as_ref().map(|mask| mask.select(order, &self.rows));
        part
    }

    /// Rows of other lengths, at most the same, over the same cache; queries are the first ones.
    pub(crate) fn with_rows(&self, rows: &[(usize, usize)]) -> Self {
        let mut other = self.clone();
        let bs = self.spec.block_size;
        let tables: Vec<Vec<u32>> = rows
            .iter()
            .enumerate()
            .map(|(row, &(_, kv_len))| self.table(row)[..kv_len.div_ceil(bs)].to_vec())
            .collect();
        other.rows = rows.to_vec();
        other.spec.rows = rows.to_vec();
        other.index(&tables);
        other
    }

    /// The same with all blocks elsewhere.
    pub(crate) fn moved(&self, rng: &mut Rng) -> Self {
        let to = permutation(self.cache.layout.num_blocks, rng);
        let mut moved = Self { cache: self.cache.permuted(&to), ..self.clone() };
        let used = *self.kv_indptr.last().expect("there is one") as usize;
        moved.kv_indices[..used].iter_mut().for_each(|block| block.0 = to[block.index()]);
        moved
    }

    /// Query tokens of a row.
    pub(crate) fn tokens(&self, row: usize) -> std::ops::Range<usize> {
        self.qo_indptr[row] as usize..self.qo_indptr[row + 1] as usize
    }

    pub(crate) fn num_tokens(&self) -> usize {
        self.qo_indptr[self.rows.len()] as usize
    }

    /// Element `d` of key `j` of a row, with its scale.
    pub(crate) fn k(&self, row: usize, j: usize, head: usize, d: usize) -> (f32, f32) {
        let (block, offset) = self.slot(row, j);
        let at = self.cache.k_at(block, offset, head);
        (self.cache.k.get(at + d), of_head(&self.k_scale, head))
    }

    pub(crate) fn v(&self, row: usize, j: usize, head: usize, d: usize) -> (f32, f32) {
        let (block, offset) = self.slot(row, j);
        let at = self.cache.v_at(block, offset, head);
        (self.cache.v.as_ref().unwrap_or(&self.cache.k).get(at + d), of_head(&self.v_scale, head))
    }

    pub(crate) fn set_k(&mut self, row: usize, j: usize, head: usize, d: usize, x: f32) {
        let (block, offset) = self.slot(row, j);
        let at = self.cache.k_at(block, offset, head);
        self.cache.k.set(at + d, x);
    }

    pub(crate) fn set_v(&mut self, row: usize, j: usize, head: usize, d: usize, x: f32) {
        let (block, offset) = self.slot(row, j);
        let at = self.cache.v_at(block, offset, head);
        self.cache.v_numbers().set(at + d, x);
    }

    fn slot(&self, row: usize, j: usize) -> (u32, usize) {
        let bs = self.spec.block_size;
        (self.kv_indices[self.kv_indptr[row] as usize + j / bs].0, j % bs)
    }

    pub(crate) fn batch(&self) -> BatchView<'_> {
        BatchView {
            qo_indptr: &self.qo_indptr,
            kv_indptr: &self.kv_indptr,
            kv_indices: &self.kv_indices,
            kv_last_page_len: &self.kv_last_page_len,
            block_size: self.spec.block_size,
        }
    }

    pub(crate) fn kernel_mask(&self) -> Option<kernels::Mask<'_>> {
        self.mask.as_ref().map(|mask| kernels::Mask {
            bits: &mask.bits,
            indptr: &mask.indptr,
            widths: &mask.widths,
        })
    }

    pub(crate) fn attention(&self, cpu: &Cpu) -> OnCpu {
        OnCpu::new(cpu, self.spec.config)
    }

    pub(crate) fn plan(&self, on: &mut OnCpu) -> Result<(), Error> {
        on.plan(self.batch(), self.cache.layout.num_blocks, self.kernel_mask())
    }

    /// An output full of poison.
    pub(crate) fn output(&self) -> Tokens {
        let AttentionConfig { num_q_heads, head_dim, q_dtype, .. } = self.spec.config;
        Tokens::new(q_dtype, self.spec.o_layout, self.num_tokens(), num_q_heads, head_dim)
    }

    /// The layer of the step planned, into a poisoned output; nothing else may be written.
    pub(crate) fn execute(&mut self, on: &OnCpu, with_lse: bool) -> Result<Answer, Error> {
        let (mut o, n) = (self.output(), self.num_tokens() * self.spec.config.num_q_heads);
        let poison = f32::from_bits(u32::MAX);
        let mut lse = vec![poison; n + 3];
        let result = self.call(on, &mut o, with_lse.then_some(&mut lse[..]));
        assert!(lse[n..].iter().all(|x| x.to_bits() == u32::MAX), "written past the LSE");
        if result.is_err() {
            assert!(o.is_untouched() && lse.iter().all(|x| x.to_bits() == u32::MAX));
        }
        result?;
        lse.truncate(n);
        Ok(Answer { o: o.take(self.num_tokens()), lse })
    }

    pub(crate) fn call(
        &mut self,
        on: &OnCpu,
        o: &mut Tokens,
        lse: Option<&mut [f32]>,
    ) -> Result<(), Error> {
        let args = AttentionArgs {
            q: self.q.view(),
            cache: &self.cache.view(),
            scales: KvScales { k: &self.k_scale, v: &self.v_scale },
            o: o.view_mut(),
            lse,
            alibi_slopes: self.alibi.as_deref(),
            sinks: self.sinks.as_deref(),
        };
        on.run(args)
    }

    /// Plan and run.
    pub(crate) fn answer(&mut self, cpu: &Cpu) -> Answer {
        let mut on = self.attention(cpu);
        let what = format!("{cpu:?}, {:?}", self.spec);
        self.plan(&mut on).unwrap_or_else(|error| panic!("{error}: {what}"));
        let answer = self.execute(&on, true);
        answer.unwrap_or_else(|error| panic!("{error}: {what}"))
    }

    pub(crate) fn is_fp8(&self) -> bool {
        self.spec.config.kv_dtype == DType::Fp8E4m3
    }
}

/// Attention on a processor, and the buffer of its steps.
#[derive(Debug)]
pub(crate) struct OnCpu {
    pub(crate) attention: Attention,
    step: StepBuffer,
}

impl OnCpu {
    pub(crate) fn new(cpu: &Cpu, config: AttentionConfig) -> Self {
        let attention =
            Attention::new(cpu, config, StepLimits::MAX).expect("a sound configuration");
        let step = StepBuffer::new(StepLimits::MAX, &[&attention]).expect("sound limits");
        Self { attention, step }
    }

    /// Plan and upload.
    pub(crate) fn plan(
        &mut self,
        batch: BatchView<'_>,
        num_blocks: usize,
        mask: Option<kernels::Mask<'_>>,
    ) -> Result<(), Error> {
        self.attention.plan(batch, num_blocks, mask)?;
        self.step.upload(&StepArrays::new(batch), &[&self.attention])
    }

    pub(crate) fn run(&self, args: AttentionArgs<'_>) -> Result<(), Error> {
        self.attention.run(&self.step, 0, args)
    }
}

fn permutation(n: usize, rng: &mut Rng) -> Vec<u32> {
    let mut all: Vec<u32> = (0..n as u32).collect();
    (1..n).rev().for_each(|i| all.swap(i, rng.below(i + 1)));
    all
}
