//! Appending new keys and values to the cache, rotated on the way where asked.

use std::ops::Range;

use half::{bf16, f16};

use super::lanes::{CONVERTED, Number, Task, check_aligned, run_on, split, widen};
use crate::device::cpu::Cpu;
use crate::error::{Error, Result};
use crate::kernels::kv::{KvLayout, KvStrides};
use crate::kernels::rope::RopePairs;
use crate::kernels::tensor::{Fp8E4m3, Shape};
use crate::kernels::{DType, KvCache, KvScales, TensorMut, TensorRef};

/// Rotary position embedding, applied to new keys and, in place, to queries.
///
/// Computed in f32, product by product, and rounded once to the type stored; a NaN becomes the
/// positive quiet one. Elements from `rotary_dim` on are as they were.
#[derive(Debug)]
pub struct Rope<'a> {
    /// Position of each token, of those without a slot too.
    pub positions: &'a [u32],
    /// `[max_position, rotary_dim]`: the cosines of a position's `rotary_dim / 2` angles, then
    /// their sines; see [`RopeConfig::table`](crate::kernels::rope::RopeConfig::table).
    pub cos_sin: &'a [f32],
    /// Elements of a head that are rotated, its first; even, at most `head_dim`.
    pub rotary_dim: usize,
    /// Which elements make a pair.
    pub pairs: RopePairs,
    /// Queries to rotate as well, f32, f16 or bf16: `[tokens, num_q_heads, head_dim]`. Those of
    /// tokens without a slot are rotated too.
    pub q: Option<TensorMut<'a>>,
}

/// New keys and values, and where they go.
#[derive(Debug)]
pub struct Append<'a> {
    /// New keys: `[tokens, num_kv_heads, head_dim]`, f32, f16 or bf16.
    pub k: TensorRef<'a>,
    /// New values, like `k`.
    pub v: TensorRef<'a>,
    /// Slot of each token, `block * block_size + offset`; a negative one is skipped.
    pub slot_mapping: &'a [i64],
    /// Scales of an fp8 cache: numbers are divided by them, and rounded to nearest even; what is
    /// beyond 448 becomes 448, NaN stays NaN.
    ///
    /// The quotient is that of f32, rounded as f32 is before it is rounded to fp8; multiplying with
    /// the scale's reciprocal is not the same.
    pub scales: KvScales<'a>,
    /// Rotation of keys before they are stored.
    pub rope: Option<Rope<'a>>,
}

impl<'a> Append<'a> {
    /// Plain: no scales, no rotation.
    #[must_use]
    pub fn new(k: TensorRef<'a>, v: TensorRef<'a>, slot_mapping: &'a [i64]) -> Self {
        Self { k, v, slot_mapping, scales: KvScales::NONE, rope: None }
    }
}

/// Writes new keys and values to their slots.
///
/// The types of `k` and `v` are the cache's, and they are copied bit by bit; or any of f32, f16 and
/// bf16 for an fp8 cache. They may have more tokens than `slot_mapping`, which counts.
///
/// The stored bytes are the same for every instruction set and number of threads.
///
/// # Errors
/// [`Error::InvalidArgument`] naming `k`, `v`, `slot_mapping` (out of range, or twice the same),
/// `scales.k`, `scales.v`, `positions`, `cos_sin`, `rotary_dim` or `q`;
/// [`Error::Forked`]. Nothing is written then.
pub fn append(cpu: &Cpu, cache: &mut KvCache<'_>, args: Append<'_>) -> Result<()> {
    args.check(cache.layout())?;
    let layout = *cache.layout();
    let Append { k, v, slot_mapping, scales, rope } = args;
    let work = Work {
        k: Rows::new(&k, cache.k_ptr(), &layout, layout.k, scales.k, rope.is_some()),
        v: Rows::new(&v, cache.v_ptr(), &layout, layout.v, scales.v, false),
        slots: slot_mapping,
        block_size: layout.block_size,
        dtype: layout.dtype,
        rope,
    };
    let tokens = slot_mapping.len();
    split(cpu, tokens, tokens.saturating_mul(work.token_bytes(&layout)), |tokens| {
        run_on(cpu.isa(), Part { work: &work, tokens });
    })
}

impl Append<'_> {
    fn check(&self, layout: &KvLayout) -> Result<()> {
        let tokens = self.slot_mapping.len();
        let &KvLayout { dtype, num_heads, head_dim, .. } = layout;
        for (field, new) in [("k", &self.k), ("v", &self.v)] {
            let is = new.dtype();
            let wanted = if dtype == DType::Fp8E4m3 && is != dtype { is } else { dtype };
            if is == DType::Fp8E4m3 {
                return Err(Error::argument(field, format!("is {is}, not f32, f16 or bf16")));
            }
            new.check(field, wanted, tokens, num_heads, head_dim)?;
            check_aligned(field, new.as_ptr(), is)?;
        }
        self.scales.check(layout)?;
        if let Some(rope) = &self.rope {
            rope.check(tokens, head_dim)?;
            let q = rope.q.as_ref().map(|q| q.as_ptr().cast_const());
            check_queries_apart(tokens, q, [self.k.as_ptr(), self.v.as_ptr()])?;
        }
        check_slots(self.slot_mapping, layout.num_blocks as u64 * layout.block_size as u64)
    }
}

/// Refuses queries, which are rotated in place, in the place of the new keys or values.
pub(crate) fn check_queries_apart<T: PartialEq>(
    tokens: usize,
    q: Option<T>,
    new: [T; 2],
) -> Result<()> {
    if tokens > 0 && q.is_some_and(|q| new.contains(&q)) {
        return Err(Error::argument("q", "is k or v: it is rotated in place"));
    }
    Ok(())
}

/// Refuses what no head has so many pairs for.
pub(crate) fn check_rotary_dim(rotary_dim: usize, head_dim: usize) -> Result<()> {
    if rotary_dim == 0 || rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
        let reason = format!("{rotary_dim} is not even and within 2 to {head_dim}");
        return Err(Error::argument("rotary_dim", reason));
    }
    Ok(())
}

impl Rope<'_> {
    fn check(&self, tokens: usize, head_dim: usize) -> Result<()> {
        let dim = self.rotary_dim;
        check_rotary_dim(dim, head_dim)?;
        if !self.cos_sin.len().is_multiple_of(dim) {
            let reason = format!("{} numbers are no rows of {dim}", self.cos_sin.len());
            return Err(Error::argument("cos_sin", reason));
        }
        if self.positions.len() != tokens {
            let reason = format!("has {} entries for {tokens} tokens", self.positions.len());
            return Err(Error::argument("positions", reason));
        }
        let rows = self.cos_sin.len() / dim;
        if let Some(token) = self.positions.iter().position(|&at| at as usize >= rows) {
            let at = self.positions[token];
            let reason = format!("token {token} is at {at}, and cos_sin has {rows} rows");
            return Err(Error::argument("positions", reason));
        }
        let Some(q) = &self.q else { return Ok(()) };
        if q.dtype() == DType::Fp8E4m3 {
            return Err(Error::argument("q", "is fp8-e4m3, not f32, f16 or bf16"));
        }
        q.check("q", q.dtype(), tokens, q.shape().heads, head_dim)?;
        q.check_disjoint("q")?;
        check_aligned("q", q.as_ptr(), q.dtype())
    }

    /// Cosines and sines of a token's position.
    #[inline(always)]
    fn angles(&self, token: usize) -> (&[f32], &[f32]) {
        let start = self.positions[token] as usize * self.rotary_dim;
        self.cos_sin[start..start + self.rotary_dim].split_at(self.rotary_dim / 2)
    }
}

/// Refuses slots that are not there, and any that two tokens would write.
fn check_slots(slots: &[i64], num_slots: u64) -> Result<()> {
    // Runs of slots one after the other, first and one past the last: a prompt has few of them.
    let mut runs: Vec<(i64, i64)> = Vec::new();
    let mut ascending = true;
    for (token, &slot) in slots.iter().enumerate() {
        if slot < 0 {
            continue;
        }
        if slot as u64 >= num_slots {
            let reason = format!("token {token}: slot {slot}, and the cache has {num_slots}");
            return Err(Error::argument("slot_mapping", reason));
        }
        match runs.last_mut() {
            Some(run) if run.1 == slot => run.1 += 1,
            last => {
                ascending &= last.is_none_or(|run| run.1 < slot);
                runs.push((slot, slot + 1));
            }
        }
    }
    if !ascending {
        runs.sort_unstable();
    }
    if let Some(twice) = runs.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        let reason = format!("two tokens have slot {}", twice[1].0);
        return Err(Error::argument("slot_mapping", reason));
    }
    Ok(())
}

/// Where rows of keys or values come from and go to; strides in bytes.
struct Rows<'a> {
    src: *const u8,
    src_token: usize,
    src_head: usize,
    src_dtype: DType,
    dst: *mut u8,
    dst_block: usize,
    dst_token: usize,
    dst_head: usize,
    /// Rows a token.
    heads: usize,
    /// Elements per row: a head, or a whole token where its heads touch.
    len: usize,
    scales: &'a [f32],
}

// SAFETY: it stands for a shared borrow of the source and an exclusive one of the cache; threads
// write different slots.
unsafe impl Sync for Rows<'_> {}

impl<'a> Rows<'a> {
    fn new(
        new: &TensorRef<'a>,
        dst: *mut u8,
        layout: &KvLayout,
        to: KvStrides,
        scales: &'a [f32],
        rotated: bool,
    ) -> Self {
        let (size, heads, dim) = (layout.dtype.size(), layout.num_heads, layout.head_dim);
        let touching = heads == 1 || (new.shape().head_stride == dim && to.head == dim);
        let whole = touching && !rotated && scales.len() <= 1;
        Self {
            src: new.as_ptr(),
            src_token: new.token_bytes(),
            src_head: new.head_bytes(),
            src_dtype: new.dtype(),
            dst,
            dst_block: to.block * size,
            dst_token: to.token * size,
            dst_head: to.head * size,
            heads: if whole { 1 } else { heads },
            len: if whole { heads * dim } else { dim },
            scales,
        }
    }

    #[inline(always)]
    fn src(&self, token: usize, head: usize) -> *const u8 {
        self.src.wrapping_add(token * self.src_token + head * self.src_head)
    }

    #[inline(always)]
    fn dst(&self, block: usize, offset: usize, head: usize) -> *mut u8 {
        let start = block * self.dst_block + offset * self.dst_token;
        self.dst.wrapping_add(start + head * self.dst_head)
    }
}

/// An append that has been checked.
struct Work<'a> {
    k: Rows<'a>,
    v: Rows<'a>,
    slots: &'a [i64],
    block_size: usize,
    dtype: DType,
    rope: Option<Rope<'a>>,
}

/// Some tokens of it.
struct Part<'a> {
    work: &'a Work<'a>,
    tokens: Range<usize>,
}

impl Task for Part<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { work, tokens } = self;
        work.store(&work.k, work.rope.as_ref(), tokens.clone());
        work.store(&work.v, None, tokens.clone());
        if let Some((rope, q)) = work.rope.as_ref().and_then(|rope| Some((rope, rope.q.as_ref()?)))
        {
            match q.dtype() {
                DType::F32 => rotate_queries::<f32>(q, rope, tokens),
                DType::F16 => rotate_queries::<f16>(q, rope, tokens),
                // Of bf16: types of caches alone are refused for queries.
                _ => rotate_queries::<bf16>(q, rope, tokens),
            }
        }
    }
}

impl Work<'_> {
    /// Bytes read and written for a token, as [`split`] counts them.
    fn token_bytes(&self, layout: &KvLayout) -> usize {
        let side = |rows: &Rows<'_>, rotated: bool| {
            let bytes = rows.heads * rows.len * (rows.src_dtype.size() + layout.dtype.size());
            if rotated || rows.src_dtype != layout.dtype { CONVERTED * bytes } else { bytes }
        };
        let q =
            self.rope.as_ref().and_then(|rope| rope.q.as_ref()).map_or(0, |q| {
                2 * CONVERTED * q.shape().heads * q.shape().head_dim * q.dtype().size()
            });
        side(&self.k, self.rope.is_some()) + side(&self.v, false) + q
    }

    #[inline(always)]
    fn store(&self, rows: &Rows<'_>, rope: Option<&Rope<'_>>, tokens: Range<usize>) {
        let fp8 = self.dtype == DType::Fp8E4m3;
        match (rows.src_dtype, rope) {
            (_, None) if !fp8 => self.copy(rows, tokens),
            (DType::F32, _) if fp8 => self.convert::<f32, Fp8E4m3>(rows, rope, tokens),
            (DType::F16, _) if fp8 => self.convert::<f16, Fp8E4m3>(rows, rope, tokens),
            (_, _) if fp8 => self.convert::<bf16, Fp8E4m3>(rows, rope, tokens),
            (DType::F32, _) => self.convert::<f32, f32>(rows, rope, tokens),
            (DType::F16, _) => self.convert::<f16, f16>(rows, rope, tokens),
            (_, _) => self.convert::<bf16, bf16>(rows, rope, tokens),
        }
    }

    /// The block and offset of a token's slot, if it has one.
    #[inline(always)]
    fn place(&self, token: usize) -> Option<(usize, usize)> {
        let slot = usize::try_from(self.slots[token]).ok()?;
        Some((slot / self.block_size, slot % self.block_size))
    }

    /// Copies rows; tokens that touch in both places in one go.
    #[inline(always)]
    fn copy(&self, rows: &Rows<'_>, tokens: Range<usize>) {
        let bytes = rows.len * self.dtype.size();
        let touching = rows.heads == 1 && rows.src_token == bytes && rows.dst_token == bytes;
        let mut token = tokens.start;
        while token < tokens.end {
            let Some((block, offset)) = self.place(token) else {
                token += 1;
                continue;
            };
            let mut run = 1;
            if touching {
                let most = (tokens.end - token).min(self.block_size - offset);
                while run < most && self.slots[token + run] == self.slots[token] + run as i64 {
                    run += 1;
                }
            }
            for head in 0..rows.heads {
                let (src, dst) = (rows.src(token, head), rows.dst(block, offset, head));
                // SAFETY: `check` found token and slot within the source and the cache, whose
                // memory is borrowed, the cache's exclusively; no other token has these slots.
                unsafe { dst.copy_from_nonoverlapping(src, run * bytes) };
            }
            token += run;
        }
    }

    /// Stores rows of `S` as `D`, rotated if asked.
    #[inline(always)]
    fn convert<S: Number, D: Number>(
        &self,
        rows: &Rows<'_>,
        rope: Option<&Rope<'_>>,
        tokens: Range<usize>,
    ) {
        let mut lanes = [0.0; MAX_HEAD_DIM];
        for token in tokens {
            let Some((block, offset)) = self.place(token) else { continue };
            for head in 0..rows.heads {
                let scale = KvScales::of(rows.scales, head);
                // SAFETY: `check` found type, alignment and extent of the source right, and the
                // token within.
                let src = unsafe {
                    std::slice::from_raw_parts(rows.src(token, head).cast::<S>(), rows.len)
                };
                // SAFETY: the slot is within the cache, which is of `D`, aligned and borrowed
                // exclusively; no other token has it, and rows do not overlap.
                let dst = unsafe {
                    std::slice::from_raw_parts_mut(
                        rows.dst(block, offset, head).cast::<D>(),
                        rows.len,
                    )
                };
                let rotated = rope.map_or(0, |rope| rope.rotary_dim);
                let (src, src_rest) = src.split_at(rotated);
                let (dst, dst_rest) = dst.split_at_mut(rotated);
                if let Some(rope) = rope {
                    let lanes = &mut lanes[..rotated];
                    widen(src, lanes);
                    rotate(lanes, rope.angles(token), rope.pairs);
                    store(lanes, scale, dst);
                }
                if S::DTYPE == D::DTYPE {
                    dst_rest.copy_from_slice(bytemuck::cast_slice(src_rest));
                } else {
                    store(src_rest, scale, dst_rest);
                }
            }
        }
    }
}

/// No head is longer.
const MAX_HEAD_DIM: usize = 256;

/// Divides by the scale, if the type has one, and rounds.
#[inline(always)]
fn store<S: Number, D: Number>(src: &[S], scale: f32, dst: &mut [D]) {
    for (to, &from) in dst.iter_mut().zip(src) {
        let number = from.widen();
        *to =
            if D::DTYPE == DType::Fp8E4m3 { D::narrow(number / scale) } else { D::narrow(number) };
    }
}

/// Rotates a token's queries where they are.
#[inline(always)]
fn rotate_queries<T: Number>(q: &TensorMut<'_>, rope: &Rope<'_>, tokens: Range<usize>) {
    let Shape { heads, .. } = q.shape();
    let mut lanes = [0.0; MAX_HEAD_DIM];
    for token in tokens {
        for head in 0..heads {
            let start = q.as_ptr().wrapping_add(token * q.token_bytes() + head * q.head_bytes());
            // SAFETY: `check` found type, alignment, the token and `rotary_dim` right and rows
            // apart; the view is an exclusive borrow, and only this part has the token.
            let row = unsafe { std::slice::from_raw_parts_mut(start.cast::<T>(), rope.rotary_dim) };
            let lanes = &mut lanes[..rope.rotary_dim];
            widen(row, lanes);
            rotate(lanes, rope.angles(token), rope.pairs);
            store(lanes, 1.0, row);
        }
    }
}

#[inline(always)]
fn rotate(lanes: &mut [f32], (cos, sin): (&[f32], &[f32]), pairs: RopePairs) {
    match pairs {
        RopePairs::Half => {
            let (first, second) = lanes.split_at_mut(lanes.len() / 2);
            let angles = cos.iter().zip(sin);
            for ((x, y), (&cos, &sin)) in first.iter_mut().zip(second).zip(angles) {
                (*x, *y) = turn(*x, *y, cos, sin);
            }
        }
        RopePairs::Interleaved => {
            let (pairs, _) = lanes.as_chunks_mut::<2>();
            for ([x, y], (&cos, &sin)) in pairs.iter_mut().zip(cos.iter().zip(sin)) {
                (*x, *y) = turn(*x, *y, cos, sin);
            }
        }
    }
}

#[inline(always)]
fn turn(x: f32, y: f32, cos: f32, sin: f32) -> (f32, f32) {
    (f32::narrow(x * cos - y * sin), f32::narrow(y * cos + x * sin))
}
