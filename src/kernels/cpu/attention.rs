//! Attention over a paged cache.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::dispatch::{self, Kernels};
use super::finish;
use super::part::{self, BatchRow, Call, FEW_ROWS, Operand, Pages, Scratch};
use crate::device::cpu::Cpu;
use crate::error::{Error, Result};
use crate::kernels::{AttentionArgs, AttentionConfig, BatchView, KvLayout, KvStrides, TensorRef};
use crate::plan::{Costs, Extent, Part, Plan, PlanConfig};
use crate::types::BlockId;

/// Query rows of a tile: enough to pay for packing its keys, few enough to stay in the L2 cache.
const TILE_ROWS: usize = 240;

/// Shares a thread: they are pulled as threads get free, so one that is held up does less.
const SHARES_PER_THREAD: usize = 8;

/// Cost of the smallest share worth handing to a thread; see [`costs`].
const SHARE_COST: u64 = 200_000;

/// Varlen paged attention for one attention group of a model: prefill, chunked prefill, decode and
/// any mixture of them.
///
/// [`plan`](Self::plan) once a step, then [`run`](Self::run) once a layer, with the same
/// [`Cpu`] or one of no more threads. Both take `&mut self`: what they work in is in here, so layers
/// that run at the same time need one each. Calls block until their outputs are written. The same plan on as many
/// threads gives the same bits; with [`fixed_split`](AttentionConfig::fixed_split) a row's bits are
/// the same in any batch, on any number of threads.
#[derive(Debug)]
pub struct Attention {
    config: AttentionConfig,
    plan: Plan,
    extents: Vec<Extent>,
    rows: Vec<BatchRow>,
    tables: Vec<BlockId>,
    num_tokens: usize,
    /// What caches must have; `None` before the first plan.
    planned: Option<(usize, usize)>,
    arrived: Vec<AtomicU32>,
    states: Vec<f32>,
    scratch: Vec<Mutex<Scratch>>,
}

impl Attention {
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `config`.
    pub fn new(config: AttentionConfig) -> Result<Self> {
        config.check()?;
        Ok(Self {
            config,
            plan: Plan::default(),
            extents: Vec::new(),
            rows: Vec::new(),
            tables: Vec::new(),
            num_tokens: 0,
            planned: None,
            arrived: Vec::new(),
            states: Vec::new(),
            scratch: Vec::new(),
        })
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &AttentionConfig {
        &self.config
    }

    /// The plan made last: who computes what.
    #[must_use]
    pub fn parts(&self) -> &Plan {
        &self.plan
    }

    /// Divides a step's work among the threads, for caches of at least `num_blocks` blocks.
    ///
    /// Steps of like size allocate nothing.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the array of `batch`, or `rows` where their parts do not fit
    /// 32 bits; the plan is as it was. [`Error::OutOfMemory`] for the states of split tiles; there is no
    /// plan then.
    pub fn plan(&mut self, cpu: &Cpu, batch: BatchView<'_>, num_blocks: usize) -> Result<()> {
        batch.check(num_blocks)?;
        let AttentionConfig { num_kv_heads, head_dim, causal, window_left, fixed_split, .. } =
            self.config;
        let group = self.config.group_size();
        let extent = |row: usize| Extent {
            q_len: batch.qo_indptr[row + 1] - batch.qo_indptr[row],
            kv_len: batch.kv_len(row),
        };
        let costs = costs(&self.config);
        let heads = num_kv_heads as u64;
        let cost = |Extent { q_len, kv_len }| {
            let pair = u64::from(costs.query_key).saturating_mul(u64::from(q_len));
            let window = window_left.map_or(u32::MAX, |window| window.saturating_add(q_len));
            let keys = heads.saturating_mul(u64::from(kv_len.min(window)));
            keys.saturating_mul(pair.saturating_add(costs.key.into()))
        };
        let total = (0..batch.num_rows()).map(extent).map(cost).fold(0_u64, u64::saturating_add);
        let most = cpu.threads() * SHARES_PER_THREAD;
        let plan = PlanConfig {
            shares: (total / SHARE_COST).clamp(1, most as u64) as u32,
            heads: num_kv_heads as u32,
            joint_q: (FEW_ROWS / group) as u32,
            q_tile: (TILE_ROWS / group).max(1) as u32,
            kv_granularity: 128,
            causal,
            window_left,
            fixed_split,
            split_q: (FEW_ROWS / group).max(1) as u32,
            costs,
        };
        self.plan.make(&plan, (0..batch.num_rows()).map(extent))?;
        // Until all is in place: memory may run out.
        self.planned = None;
        self.extents.clear();
        self.extents.extend((0..batch.num_rows()).map(extent));
        self.rows.clear();
        self.rows.extend((0..batch.num_rows()).map(|row| BatchRow {
            first_token: batch.qo_indptr[row] as usize,
            q_len: self.extents[row].q_len,
            kv_len: self.extents[row].kv_len,
            table: batch.kv_indptr[row] as usize,
            mask: (0, 0),
        }));
        let used = batch.kv_indptr.last().map_or(0, |&end| end as usize);
        self.tables.clear();
        self.tables.extend_from_slice(&batch.kv_indices[..used]);
        self.num_tokens = batch.num_tokens();
        if self.arrived.len() < self.plan.merges().len() {
            self.arrived.resize_with(self.plan.merges().len(), AtomicU32::default);
        }
        let states = self.plan.num_states() as usize * group;
        let states = states * (head_dim + 2);
        if let Some(more) = states.checked_sub(self.states.len()) {
            let no_memory = |_| Error::OutOfMemory { bytes: states.saturating_mul(4) };
            self.states.try_reserve_exact(more).map_err(no_memory)?;
            self.states.resize(states, 0.0);
        }
        if self.scratch.len() < cpu.threads() {
            self.scratch.resize_with(cpu.threads(), Mutex::default);
        }
        let largest = self.plan.parts().iter().map(|part| part.q_len as usize).max().unwrap_or(0);
        for scratch in &mut self.scratch {
            let scratch = scratch.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
            scratch.reserve(largest * group, num_kv_heads, head_dim);
        }
        self.planned = Some((num_blocks, batch.block_size));
        Ok(())
    }

    /// Computes a layer's attention for the step planned last.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `args`, or `plan` when none was made;
    /// [`Error::Forked`]. Nothing is written then.
    pub fn run(&mut self, cpu: &Cpu, args: AttentionArgs<'_>) -> Result<()> {
        let pool = cpu.pool()?;
        let Some((num_blocks, block_size)) = self.planned else {
            return Err(Error::argument("plan", "there is none: plan a step first"));
        };
        if self.scratch.len() < cpu.threads() {
            let planned = self.scratch.len();
            let reason = format!("was made for {planned} threads, and there are {}", cpu.threads());
            return Err(Error::argument("plan", reason));
        }
        let extents = self.extents.iter().map(|extent| (extent.q_len, extent.kv_len));
        args.check(&self.config, num_blocks, block_size, self.num_tokens, extents)?;
        for arrived in &mut self.arrived {
            // They are 0, unless a call before this one was cut short by a panic.
            *arrived.get_mut() = 0;
        }
        for (i, row) in self.rows.iter_mut().enumerate() {
            let mask = |mask: crate::kernels::Mask<'_>| (mask.indptr[i] as usize, mask.widths[i]);
            row.mask = args.mask.map_or((0, 0), mask);
        }
        let AttentionConfig { num_q_heads, head_dim, q_dtype, kv_dtype, .. } = self.config;
        let states = self.plan.num_states() as usize * self.config.group_size();
        let state_o = self.states.as_mut_ptr();
        let KvLayout { k, v, dtype, .. } = *args.cache.layout();
        let call = Call {
            rows: &self.rows,
            tables: &self.tables,
            block_size,
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
            mask: args.mask.map_or(&[], |mask| mask.bits),
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
            state_sums: state_o.wrapping_add(states * head_dim).cast(),
        };
        let kernels = dispatch::kernels(cpu.isa(), q_dtype, kv_dtype);
        let work = Work {
            call,
            plan: &self.plan,
            arrived: &self.arrived,
            next: AtomicUsize::new(0),
            kernels,
        };
        let work = |scratch: &Mutex<Scratch>| {
            let mut scratch = scratch.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            // SAFETY: `args.check` and `plan` found all inside; `Cpu` has the instructions.
            unsafe { work.run(&mut scratch) };
        };
        if self.plan.share_indptr().len() == 2 {
            // Too little to wake anybody for.
            work(&self.scratch[0]);
        } else {
            pool.broadcast(|thread| work(&self.scratch[thread.index()]));
        }
        Ok(())
    }
}

/// A call, divided.
struct Work<'a> {
    call: Call<'a>,
    plan: &'a Plan,
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
            if share + 1 >= self.plan.share_indptr().len() {
                return;
            }
            let mut parts = self.plan.share(share).iter().peekable();
            while let Some(part) = parts.next() {
                let next = parts.peek().copied();
                // SAFETY: the caller vouches for it; a part is in one share.
                unsafe { part::run(self.kernels, &self.call, part, next, scratch) };
                if part.merge != Part::WHOLE {
                    // SAFETY: as above.
                    unsafe { self.arrive(part) };
                }
            }
        }
    }

    /// Whoever comes last merges, in the order of the keys: who that is makes no difference.
    ///
    /// # Safety
    /// The part's states are written.
    unsafe fn arrive(&self, part: &Part) {
        let merge = &self.plan.merges()[part.merge as usize];
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
/// to read or pack, a query with a key `4 head_dim` operations a head of the group.
fn costs(config: &AttentionConfig) -> Costs {
    let key = 2 * config.head_dim * config.kv_dtype.size();
    let query_key = (config.group_size() * config.head_dim / 2).max(1);
    Costs { tile: 16_384, key: key as u32, query_key: query_key.min(1 << 20) as u32 }
}
