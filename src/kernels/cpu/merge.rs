//! Merging attention over parts of the keys: split-KV, shared prefixes, cascades.

use std::ops::Range;

use half::{bf16, f16};

use super::lanes::{CONVERTED, Number, Task, check_aligned, run_on, split};
use crate::device::cpu::Cpu;
use crate::error::{Error, Result};
use crate::kernels::tensor::Shape;
use crate::kernels::{DType, TensorMut, TensorRef};

/// Elements accumulated at a time: the longest head of a cache.
const LANES: usize = 256;

/// The attention of the same queries over some of the keys.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// Outputs: `[tokens, heads, head_dim]`; f32, f16 or bf16, whatever the others are.
    pub o: TensorRef<'a>,
    /// LSE: `[tokens, heads]`.
    pub lse: &'a [f32],
}

impl State<'_> {
    /// The LSE of a row: -inf where it has no keys, which FlashAttention says by +inf.
    #[inline(always)]
    fn lse(&self, row: usize) -> f32 {
        match self.lse[row] {
            f32::INFINITY => f32::NEG_INFINITY,
            lse => lse,
        }
    }
}

/// Merges states over disjoint keys, in the order given, into the attention over all of them.
///
/// `o` is f32, f16 or bf16, and has the states' shape; its type may differ from theirs. Sums are in
/// f32, rounded once. States whose LSE is -inf, or +inf as FlashAttention marks rows without keys,
/// are neutral, their outputs not read; all of them merge to 0 and -inf. Where only one is left, the
/// result is its bits (rounded, if the types differ). A sink belongs to exactly one of the states.
///
/// Finite numbers never give NaN. An LSE of NaN is not refused, and makes its row NaN.
///
/// # Errors
/// [`Error::InvalidArgument`] naming `states`, `o` or `lse`; [`Error::Forked`]. Nothing is written then.
pub fn merge(
    cpu: &Cpu,
    states: &[State<'_>],
    o: TensorMut<'_>,
    lse: Option<&mut [f32]>,
) -> Result<()> {
    check(states, &o, lse.as_deref())?;
    let Shape { tokens, heads, head_dim, .. } = o.shape();
    let read: usize = states.iter().map(|state| state.o.dtype().size()).sum();
    let bytes = (tokens * heads).saturating_mul(CONVERTED * head_dim * (read + o.dtype().size()));
    let work = Merge { states, o: &o, lse: lse.map(<[f32]>::as_mut_ptr) };
    split(cpu, tokens, bytes, |tokens| run_on(cpu.isa(), Part { work: &work, tokens }))
}

fn check(states: &[State<'_>], o: &TensorMut<'_>, lse: Option<&[f32]>) -> Result<()> {
    let Shape { tokens, heads, head_dim, .. } = o.shape();
    if o.dtype() == DType::Fp8E4m3 {
        return Err(Error::argument("o", "is fp8-e4m3, not f32, f16 or bf16"));
    }
    o.check_disjoint("o")?;
    check_aligned("o", o.as_ptr(), o.dtype())?;
    let Some(rows) = tokens.checked_mul(heads) else {
        return Err(Error::argument("o", "its rows do not fit 64 bits"));
    };
    if states.is_empty() {
        return Err(Error::argument("states", "at least one is needed"));
    }
    for (i, state) in states.iter().enumerate() {
        let dtype = state.o.dtype();
        if dtype == DType::Fp8E4m3 {
            let reason = format!("outputs of {i} are {dtype}, not f32, f16 or bf16");
            return Err(Error::argument("states", reason));
        }
        state.o.check("states", dtype, tokens, heads, head_dim)?;
        check_aligned("states", state.o.as_ptr(), dtype)?;
        if state.lse.len() < rows {
            let reason = format!("{i} has {} LSE for {rows} rows", state.lse.len());
            return Err(Error::argument("states", reason));
        }
    }
    if let Some(given) = lse.map(<[f32]>::len).filter(|&given| given < rows) {
        let reason = format!("{given} elements are given and there are {rows} rows");
        return Err(Error::argument("lse", reason));
    }
    Ok(())
}

/// A merge that has been checked.
struct Merge<'a> {
    states: &'a [State<'a>],
    o: &'a TensorMut<'a>,
    lse: Option<*mut f32>,
}

// SAFETY: it stands for shared borrows of the states and an exclusive one of the results; threads
// write different tokens.
unsafe impl Sync for Merge<'_> {}

/// Some tokens of it.
struct Part<'a> {
    work: &'a Merge<'a>,
    tokens: Range<usize>,
}

impl Task for Part<'_> {
    #[inline(always)]
    fn run(self) {
        match self.work.o.dtype() {
            DType::F32 => self.work.merge::<f32>(self.tokens),
            DType::F16 => self.work.merge::<f16>(self.tokens),
            // Of bf16: types of caches alone are refused for outputs.
            _ => self.work.merge::<bf16>(self.tokens),
        }
    }
}

impl Merge<'_> {
    #[inline(always)]
    fn merge<O: Number>(&self, tokens: Range<usize>) {
        let Shape { heads, head_dim, .. } = self.o.shape();
        let mut weights = vec![0.0; self.states.len()];
        for token in tokens {
            for head in 0..heads {
                let row = token * heads + head;
                let start = token * self.o.token_bytes() + head * self.o.head_bytes();
                // SAFETY: type, alignment and extent were checked, rows do not overlap, the view
                // is an exclusive borrow, and only this part has the token.
                let out = unsafe {
                    std::slice::from_raw_parts_mut(
                        self.o.as_ptr().wrapping_add(start).cast::<O>(),
                        head_dim,
                    )
                };
                let lse = match self.seen(row) {
                    (0, _) => {
                        out.fill(O::narrow(0.0));
                        f32::NEG_INFINITY
                    }
                    (1, one) => {
                        self.take(one, token, head, out);
                        self.states[one].lse(row)
                    }
                    _ => {
                        let lse = self.weigh(row, &mut weights);
                        self.sum(&weights, token, head, out);
                        lse
                    }
                };
                if let Some(to) = self.lse {
                    // SAFETY: `check` found room for all rows; only this part has the row.
                    unsafe { to.wrapping_add(row).write(lse) };
                }
            }
        }
    }

    /// How many states have seen keys in a row, and the last of them.
    #[inline(always)]
    fn seen(&self, row: usize) -> (usize, usize) {
        let (mut count, mut last) = (0, 0);
        for (i, state) in self.states.iter().enumerate() {
            if state.lse(row) != f32::NEG_INFINITY {
                (count, last) = (count + 1, i);
            }
        }
        (count, last)
    }

    /// The share of each state; returns the LSE of all.
    #[inline(always)]
    fn weigh(&self, row: usize, weights: &mut [f32]) -> f32 {
        let mut most = f32::NEG_INFINITY;
        for state in self.states {
            most = most.max(state.lse(row));
        }
        let mut sum = 0.0;
        for (weight, state) in weights.iter_mut().zip(self.states) {
            *weight = (state.lse(row) - most).exp();
            sum += *weight;
        }
        // Shares add up to 1: no sum of finite outputs overflows on the way.
        for weight in weights {
            *weight /= sum;
        }
        most + sum.ln()
    }

    /// Sums the states' outputs by their weights.
    #[inline(always)]
    fn sum<O: Number>(&self, weights: &[f32], token: usize, head: usize, out: &mut [O]) {
        let mut lanes = [0.0; LANES];
        let mut start = 0;
        for out in out.chunks_mut(LANES) {
            let lanes = &mut lanes[..out.len()];
            // Less than any number: a sum that starts at 0 would lose the sign of -0.
            lanes.fill(-0.0);
            for (state, &weight) in self.states.iter().zip(weights) {
                // Too small to count, or no keys: outputs may be anything then.
                if weight == 0.0 {
                    continue;
                }
                match state.o.dtype() {
                    DType::F32 => add(lanes, weight, &row::<f32>(&state.o, token, head)[start..]),
                    DType::F16 => add(lanes, weight, &row::<f16>(&state.o, token, head)[start..]),
                    _ => add(lanes, weight, &row::<bf16>(&state.o, token, head)[start..]),
                }
            }
            for (out, &lane) in out.iter_mut().zip(&*lanes) {
                *out = O::narrow(lane);
            }
            start += LANES;
        }
    }

    /// Copies a state's outputs.
    #[inline(always)]
    fn take<O: Number>(&self, state: usize, token: usize, head: usize, out: &mut [O]) {
        let o = &self.states[state].o;
        match o.dtype() {
            DType::F32 => convert(row::<f32>(o, token, head), out),
            DType::F16 => convert(row::<f16>(o, token, head), out),
            _ => convert(row::<bf16>(o, token, head), out),
        }
    }
}

/// A head's outputs, of a state that `check` found to be of `S`.
#[inline(always)]
fn row<'a, S: Number>(o: &TensorRef<'a>, token: usize, head: usize) -> &'a [S] {
    let start = token * o.token_bytes() + head * o.head_bytes();
    // SAFETY: `check` found type and alignment right, and token and head within; the view is a
    // shared borrow for 'a.
    unsafe {
        std::slice::from_raw_parts(o.as_ptr().wrapping_add(start).cast::<S>(), o.shape().head_dim)
    }
}

#[inline(always)]
fn add<S: Number>(lanes: &mut [f32], weight: f32, row: &[S]) {
    for (lane, &number) in lanes.iter_mut().zip(row) {
        *lane += weight * number.widen();
    }
}

#[inline(always)]
fn convert<S: Number, O: Number>(row: &[S], out: &mut [O]) {
    if S::DTYPE == O::DTYPE {
        out.copy_from_slice(bytemuck::cast_slice(row));
        return;
    }
    for (out, &number) in out.iter_mut().zip(row) {
        *out = O::narrow(number.widen());
    }
}
