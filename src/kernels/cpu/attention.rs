//! Attention over a paged cache.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::dispatch::{self, Kernels};
use super::finish;
use super::part::{self, Call, FEW_ROWS, Operand, Pages, Scratch, StepRows};
use super::step::StepBuffer;
use crate::device::cpu::Cpu;
use crate::error::{Error, Result};
use crate::kernels::attention::check_not_in_place;
use crate::kernels::pack::PackedPlan;
use crate::kernels::planned::Planned;
use crate::kernels::{
    AttentionConfig, BatchView, KvCache, KvLayout, KvScales, KvStrides, Mask, StepLimits,
    TensorMut, TensorRef,
};
use crate::plan::{Costs, Extent, Part, Plan, PlanConfig};

/// Query rows of a tile: enough to pay for packing its keys, few enough to stay in the L2 cache.
const TILE_ROWS: usize = 240;

/// Shares a thread: they are pulled as threads get free, so one that is held up does less.
const SHARES_PER_THREAD: usize = 8;

/// Cost of the smallest share worth handing to a thread; see [`costs`].
const SHARE_COST: u64 = 200_000;

/// What one layer's attention reads and writes.
#[derive(Debug)]
pub struct AttentionArgs<'a> {
    /// Queries: `[tokens, num_q_heads, head_dim]`. Tokens beyond the batch's are not looked at.
    pub q: TensorRef<'a>,
    /// The layer's K and V, this step's already appended.
    pub cache: &'a KvCache<'a>,
    /// Scales of an fp8 cache.
    pub scales: KvScales<'a>,
    /// Outputs: shape and type of `q`.
    pub o: TensorMut<'a>,
    /// LSE: `[tokens, num_q_heads]`.
    pub lse: Option<&'a mut [f32]>,
    /// ALiBi slopes: one per query head.
    pub alibi_slopes: Option<&'a [f32]>,
    /// Sink logits: one per query head.
    pub sinks: Option<&'a [f32]>,
}

/// Varlen paged attention for one attention group of a model: prefill, chunked prefill, decode and
/// any mixture of them.
///
/// [`plan`](Self::plan) and [`StepBuffer::upload`] once per step, then [`run`](Self::run) once per layer.
/// Layers that run at the same time need one each: what a run works in is in here, so runs of one wait
/// for each other. Calls block until their outputs are written. The same plan on as many
/// threads gives the same bits; with [`fixed_split`](AttentionConfig::fixed_split) a row's bits are
/// the same in any batch, on any number of threads.
#[derive(Debug)]
pub struct Attention {
    cpu: Cpu,
    config: AttentionConfig,
    limits: StepLimits,
    planned: Planned,
    plan: Plan,
    memory: Mutex<Memory>,
}

/// What a run works in.
#[derive(Debug, Default)]
struct Memory {
    arrived: Vec<AtomicU32>,
    states: Vec<f32>,
    scratch: Vec<Mutex<Scratch>>,
}

impl Attention {
    /// On the threads of `cpu`, for steps within `limits`: memory grows with the steps.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `config` or `limits`.
    pub fn new(cpu: &Cpu, config: AttentionConfig, limits: StepLimits) -> Result<Self> {
        config.check()?;
        limits.check()?;
        let (cpu, planned, plan) = (cpu.clone(), Planned::default(), Plan::default());
        Ok(Self { cpu, config, limits, planned, plan, memory: Mutex::default() })
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &AttentionConfig {
        &self.config
    }

    /// The largest steps it is made for.
    #[must_use]
    pub fn limits(&self) -> &StepLimits {
        &self.limits
    }

    /// The plan made last: who computes what.
    #[must_use]
    pub fn parts(&self) -> &Plan {
        &self.plan
    }

    /// The threads that it is for.
    pub(crate) fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// Forgets the plan made last.
    pub(crate) fn forget_plan(&mut self) {
        self.planned.forget();
    }

    /// What was planned last.
    pub(crate) fn planned(&self) -> &Planned {
        &self.planned
    }

    /// Divides a step's work among the threads, for caches of at least `num_blocks` blocks. The mask
    /// is copied.
    ///
    /// Steps of like size allocate nothing.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the array of `batch` or `mask`, `limits` where the step is
    /// larger, or `rows` where their parts do not fit 32 bits; [`Error::OutOfMemory`] for the states of
    /// split tiles. There is no plan then.
    pub fn plan(
        &mut self,
        batch: BatchView<'_>,
        num_blocks: usize,
        mask: Option<Mask<'_>>,
    ) -> Result<()> {
        self.planned.begin(&self.limits, &batch, num_blocks, mask)?;
        let AttentionConfig { num_kv_heads, head_dim, causal, window_left, fixed_split, .. } =
            self.config;
        let group = self.config.group_size();
        let extents = self.planned.extents().iter().copied();
        let costs = costs(&self.config);
        let heads = num_kv_heads as u64;
        let cost = |Extent { q_len, kv_len }| {
            let pair = u64::from(costs.query_key).saturating_mul(u64::from(q_len));
            let window = window_left.map_or(u32::MAX, |window| window.saturating_add(q_len));
            let keys = heads.saturating_mul(u64::from(kv_len.min(window)));
            keys.saturating_mul(pair.saturating_add(costs.key.into()))
        };
        let total = extents.clone().map(cost).fold(0_u64, u64::saturating_add);
        let most = self.cpu.threads() * SHARES_PER_THREAD;
        let plan = PlanConfig {
            shares: (total / SHARE_COST).clamp(1, most as u64) as u32,
            heads: num_kv_heads as u32,
            max_packed_q: (FEW_ROWS / group) as u32,
            q_tile: (TILE_ROWS / group).max(1) as u32,
            kv_granularity: 128,
            causal,
            window_left,
            fixed_split,
            split_q: (FEW_ROWS / group).max(1) as u32,
            costs,
        };
        self.plan.make(&plan, extents)?;
        let Memory { arrived, states, scratch } =
            self.memory.get_mut().unwrap_or_else(PoisonError::into_inner);
        if arrived.len() < self.plan.merges().len() {
            arrived.resize_with(self.plan.merges().len(), AtomicU32::default);
        }
        let needed = self.plan.num_states() as usize * group * (head_dim + 2);
        if let Some(more) = needed.checked_sub(states.len()) {
            let no_memory = |_| Error::OutOfMemory { bytes: needed.saturating_mul(4) };
            states.try_reserve_exact(more).map_err(no_memory)?;
            states.resize(needed, 0.0);
        }
        scratch.resize_with(self.cpu.threads(), Mutex::default);
        let largest = self.plan.parts().iter().map(|part| part.q_len as usize).max().unwrap_or(0);
        for scratch in scratch {
            let scratch = scratch.get_mut().unwrap_or_else(PoisonError::into_inner);
            scratch.reserve(largest * group, num_kv_heads, head_dim);
        }
        self.planned.finish();
        Ok(())
    }

    /// Computes a layer's attention for the step in `step`; `group` is its place among the groups
    /// that the step was uploaded with.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `args`, `plan` where none was made, or `step` or
    /// `group` where its upload was not of the plan made last; [`Error::Forked`]. Nothing is written
    /// then.
    pub fn run(&self, step: &StepBuffer, group: usize, args: AttentionArgs<'_>) -> Result<()> {
        let pool = self.cpu.pool()?;
        self.planned.check_uploaded(step.uploaded(), group)?;
        self.check(&args)?;
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let Memory { arrived, states, scratch } = &mut *memory;
        for arrived in &mut *arrived {
            // They are 0, unless a call before this one was cut short by a panic.
            *arrived.get_mut() = 0;
        }
        let plan = PackedPlan::of(step.batch(), group);
        let AttentionConfig { num_q_heads, head_dim, q_dtype, kv_dtype, .. } = self.config;
        let num_states = self.plan.num_states() as usize * self.config.group_size();
        let state_o = states.as_mut_ptr();
        let KvLayout { k, v, dtype, .. } = *args.cache.layout();
        let call = Call {
            rows: StepRows { batch: step.batch().into(), mask: plan.mask },
            num_q_heads,
            group: self.config.group_size(),
            head_dim,
            kv_size: kv_dtype.size(),
            causal: self.config.causal,
            window_left: self.config.window_left,
            soft_cap: self.config.soft_cap,
            scale: self.config.scale,
            k_scale: args.scales.k,
            v_scale: args.scales.v,
            alibi: args.alibi_slopes,
            sinks: args.sinks,
            q: read(&args.q),
            o: Operand {
                data: args.o.as_ptr(),
                token: args.o.token_bytes(),
                head: args.o.head_bytes(),
                dtype: args.o.dtype(),
            },
            lse: args.lse.map_or(std::ptr::null_mut(), |lse| lse.as_mut_ptr()),
            k: pages(args.cache.k_ptr(), k, dtype.size()),
            v: pages(args.cache.v_ptr(), v, dtype.size()),
            state_o,
            state_sums: state_o.wrapping_add(num_states * head_dim).cast(),
        };
        let kernels = dispatch::kernels(self.cpu.isa(), q_dtype, kv_dtype);
        let work = Work { call, plan, arrived, next: AtomicUsize::new(0), kernels };
        let work = |scratch: &Mutex<Scratch>| {
            let mut scratch = scratch.lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: `check` found all operands as large as the configuration asks for. The step's
            // upload checked its rows and tables, and that this plan is of them; blocks that they
            // name are below the cache's. `plan` made room, and `Cpu` has the instructions.
            unsafe { work.run(&mut scratch) };
        };
        if plan.share_indptr.len() == 2 {
            // Too little to wake a thread for.
            work(&scratch[0]);
        } else {
            pool.broadcast(|thread| work(&scratch[thread.index()]));
        }
        Ok(())
    }

    /// Checks all against the configuration and what was planned.
    fn check(&self, args: &AttentionArgs<'_>) -> Result<()> {
        let AttentionConfig { num_q_heads, head_dim, q_dtype, .. } = self.config;
        let num_tokens = self.planned.num_tokens;
        args.q.check("q", q_dtype, num_tokens, num_q_heads, head_dim)?;
        args.o.check("o", q_dtype, num_tokens, num_q_heads, head_dim)?;
        args.o.check_disjoint("o")?;
        check_not_in_place(num_tokens, args.q.as_ptr(), args.o.as_ptr().cast_const())?;
        let layout = args.cache.layout();
        self.planned.check_cache(&self.config, layout)?;
        args.scales.check(layout)?;
        // What dot products are multiplied with, all together, to be logits to base 2.
        let most = args.scales.k.iter().copied().fold(1.0, f32::max) * 256.0;
        if !(self.config.scale * most * std::f32::consts::LOG2_E).is_finite() {
            let reason = format!("{} times the scale of attention is beyond f32", most / 256.0);
            return Err(Error::argument("scales.k", reason));
        }
        let lse = num_tokens * num_q_heads;
        if let Some(given) = args.lse.as_ref().map(|lse| lse.len()).filter(|&len| len < lse) {
            let reason = format!("{given} elements are given and the batch has {lse}");
            return Err(Error::argument("lse", reason));
        }
        for (field, numbers) in [("alibi_slopes", args.alibi_slopes), ("sinks", args.sinks)] {
            let Some(numbers) = numbers else { continue };
            if numbers.len() != num_q_heads {
                let reason = format!("has {} numbers for {num_q_heads} heads", numbers.len());
                return Err(Error::argument(field, reason));
            }
            let sinks = field == "sinks";
            // A sink of -inf is none at all.
            let good = |x: &f32| x.is_finite() || (sinks && *x == f32::NEG_INFINITY);
            if let Some(bad) = numbers.iter().find(|x| !good(x)) {
                return Err(Error::argument(field, format!("{bad} is not finite")));
            }
        }
        Ok(())
    }
}

/// A call, divided.
struct Work<'a> {
    call: Call<'a>,
    plan: PackedPlan<'a>,
    /// Parts that have arrived at each merge.
    arrived: &'a [AtomicU32],
    next: AtomicUsize,
    kernels: &'a Kernels,
}

impl Work<'_> {
    /// Takes shares until none is left.
    ///
    /// # Safety
    /// As [`part::run`](super::part::run), for every part of the plan.
    unsafe fn run(&self, scratch: &mut Scratch) {
        loop {
            let share = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(&[start, end]) =
                self.plan.share_indptr.get(share..).and_then(<[u32]>::first_chunk)
            else {
                return;
            };
            let mut parts = self.plan.parts[start as usize..end as usize].iter().peekable();
            while let Some(part) = parts.next() {
                let next = parts.peek().copied();
                // SAFETY: as the caller promises; a part is in one share.
                unsafe { part::run(self.kernels, &self.call, part, next, scratch) };
                if part.merge != Part::WHOLE {
                    // SAFETY: as above.
                    unsafe { self.arrive(part) };
                }
            }
        }
    }

    /// The last to arrive merges, in the order of the keys: which that is makes no difference.
    ///
    /// # Safety
    /// The part's states are written.
    unsafe fn arrive(&self, part: &Part) {
        let merge = &self.plan.merges[part.merge as usize];
        let arrived = &self.arrived[part.merge as usize];
        if arrived.fetch_add(1, Ordering::AcqRel) + 1 == merge.count {
            arrived.store(0, Ordering::Relaxed);
            // SAFETY: the others' states were released by their increments.
            unsafe { finish::merge(self.kernels, &self.call, merge) };
        }
    }
}

fn read(tensor: &TensorRef<'_>) -> Operand {
    Operand {
        data: tensor.as_ptr().cast_mut(),
        token: tensor.token_bytes(),
        head: tensor.head_bytes(),
        dtype: tensor.dtype(),
    }
}

fn pages(data: *const u8, strides: KvStrides, size: usize) -> Pages {
    let KvStrides { block, token, head } = strides;
    // The stride of a dimension of one is any number, and never used.
    let [block, token, head] = [block, token, head].map(|stride| stride.wrapping_mul(size));
    Pages { data, block, token, head }
}

/// Costs in the time a byte of K or V takes to be read, about 0.1 ns: a key is `2 head_dim` numbers
/// to read or pack, a query with a key `4 head_dim` operations per head of the group.
fn costs(config: &AttentionConfig) -> Costs {
    let key = 2 * config.head_dim * config.kv_dtype.size();
    let query_key = (config.group_size() * config.head_dim / 2).max(1);
    Costs { tile: 16_384, key: key as u32, query_key: query_key.min(1 << 20) as u32 }
}
