//! Varlen paged attention on a GPU.

use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::pack::StepLimits;
use super::params::{self, inflight_attention_params};
use super::shapes::{self, Block, DIMS};
use super::step::StepBuffer;
use super::tensor::{DeviceCache, DeviceTensor};
use crate::device::cuda::{Cuda, CudaBuffer, CudaStream, Kernel, Kernels, Launch};
use crate::error::{Error, Result};
use crate::kernels::{AttentionConfig, BatchView, DType, Mask};
use crate::plan::{Costs, Extent, Plan, PlanBounds, PlanConfig};

/// Varlen paged attention for one attention group of a model: prefill, chunked prefill, decode and
/// any mixture of them, causal or not.
///
/// [`plan`](Self::plan) and [`StepBuffer::upload`] once a step, then [`run`](Self::run) once a
/// layer, all layers on one stream: they share the memory of split tiles. Rows of few queries
/// (at most 16 query heads of a KV head together) are computed by one kernel, others by another.
///
/// The same plan gives the same bits. With [`fixed_split`](AttentionConfig::fixed_split) a row's
/// bits are the same in any batch and on any number of multiprocessors.
#[derive(Debug)]
pub struct Attention {
    config: AttentionConfig,
    limits: StepLimits,
    decode: Side,
    prefill: Side,
    state_o: CudaBuffer,
    state_ml: CudaBuffer,
    mask: OwnedMask,
    has_mask: bool,
    extents: Vec<Extent>,
    planned: Option<Planned>,
}

/// What was planned last.
#[derive(Clone, Copy, Debug)]
struct Planned {
    generation: u64,
    num_tokens: usize,
    num_blocks: usize,
    block_size: usize,
}

/// One of the two kernels, and its part of a step.
#[derive(Debug)]
struct Side {
    plain: Kernel,
    general: Kernel,
    launch: Launch,
    config: PlanConfig,
    plan: Plan,
    bounds: PlanBounds,
    /// Parts that have arrived at each merge: 0 between launches.
    arrived: CudaBuffer,
}

#[derive(Debug, Default)]
struct OwnedMask {
    bits: Vec<u8>,
    indptr: Vec<u32>,
    widths: Vec<u32>,
}

/// What one layer's attention reads and writes, in device memory.
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs {
    /// Queries: `[tokens, num_q_heads, head_dim]`. Tokens beyond the step's are not looked at.
    pub q: DeviceTensor,
    /// The layer's K and V, this step's already appended.
    pub cache: DeviceCache,
    /// Outputs: type of `q`, and its shape with any strides.
    pub o: DeviceTensor,
    /// Address of the LSE, f32 `[tokens, num_q_heads]`; 0 for none.
    pub lse: u64,
    /// Address of ALiBi slopes, f32, one a query head; 0 for none.
    pub alibi_slopes: u64,
    /// Address of sink logits, f32, one a query head; 0 for none.
    pub sinks: u64,
}

impl AttentionArgs {
    /// Plain: no LSE, slopes or sinks.
    #[must_use]
    pub fn new(q: DeviceTensor, cache: DeviceCache, o: DeviceTensor) -> Self {
        Self { q, cache, o, lse: 0, alibi_slopes: 0, sinks: 0 }
    }
}

impl Attention {
    /// Loads kernels and makes room for steps within `limits`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `config` or `limits`;
    /// [`Error::NoKernelImage`]; [`Error::OutOfDeviceMemory`]; what the driver refuses.
    pub fn new(cuda: &Arc<Cuda>, config: AttentionConfig, limits: StepLimits) -> Result<Self> {
        config.check()?;
        limits.check()?;
        let dim = kernel_dim(&config)?;
        let group = config.group_size();
        let kernels = Kernels::new(cuda);
        let decode = Side::new(&kernels, &config, &limits, &decode_shape(dim, &config))?;
        let prefill = Side::new(&kernels, &config, &limits, &prefill_shape(dim, &config))?;
        // One after the other, so they share their states.
        let states = decode.bounds.states.max(prefill.bounds.states) as usize;
        let state = |numbers: usize| {
            let bytes = states.checked_mul(group * numbers * size_of::<f32>());
            let bytes = bytes.ok_or_else(|| {
                Error::argument("limits", "the states of their steps do not fit 64 bits")
            })?;
            CudaBuffer::new(cuda, bytes)
        };
        Ok(Self {
            config,
            limits,
            decode,
            prefill,
            state_o: state(config.head_dim)?,
            state_ml: state(2)?,
            mask: OwnedMask::default(),
            has_mask: false,
            extents: Vec::new(),
            planned: None,
        })
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

    /// Bytes of device memory that it holds: states of split tiles, and counters.
    #[must_use]
    pub fn workspace_bytes(&self) -> usize {
        let counters = self.decode.arrived.len() + self.prefill.arrived.len();
        self.state_o.len() + self.state_ml.len() + counters
    }

    /// The plans made last: of rows with few queries, and of others.
    #[must_use]
    pub fn parts(&self) -> [&Plan; 2] {
        [&self.decode.plan, &self.prefill.plan]
    }

    /// Divides a step's work among thread blocks, for caches of at least `num_blocks` blocks. The
    /// mask is copied.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the array of `batch` or `mask`, or `limits` where the step
    /// is larger; there is no plan then.
    pub fn plan(
        &mut self,
        batch: BatchView<'_>,
        num_blocks: usize,
        mask: Option<Mask<'_>>,
    ) -> Result<()> {
        self.planned = None;
        batch.check_bounds(num_blocks)?;
        self.extents.clear();
        self.extents.extend((0..batch.num_rows()).map(|row| Extent {
            q_len: batch.qo_indptr[row + 1] - batch.qo_indptr[row],
            kv_len: batch.kv_len(row),
        }));
        let longest = self.extents.iter().map(|e| e.kv_len as usize).max().unwrap_or(0);
        let limits = &self.limits;
        let sizes = [
            ("rows", batch.num_rows(), limits.max_rows),
            ("tokens", batch.num_tokens(), limits.max_tokens),
            ("keys in a row", longest, limits.max_kv_len),
            ("bytes of mask", mask.map_or(0, |mask| mask.bits.len()), limits.max_mask_bytes),
        ];
        if let Some((what, has, most)) = sizes.into_iter().find(|&(_, has, most)| has > most) {
            let reason = format!("{has} {what}, and the plan is made for {most}");
            return Err(Error::argument("limits", reason));
        }
        if let Some(mask) = mask {
            mask.check(self.extents.iter().map(|e| (e.q_len, e.kv_len)))?;
            self.mask.bits.clear();
            self.mask.bits.extend_from_slice(mask.bits);
            self.mask.indptr.clear();
            self.mask.indptr.extend_from_slice(mask.indptr);
            self.mask.widths.clear();
            self.mask.widths.extend_from_slice(mask.widths);
        }
        self.has_mask = mask.is_some();
        let few = few_queries(&self.config);
        let of = |extent: &Extent, decode: bool| match (extent.q_len <= few) == decode {
            true => *extent,
            // A row without queries has no parts.
            false => Extent { q_len: 0, ..*extent },
        };
        let extents = &self.extents;
        self.decode.plan.make(&self.decode.config, extents.iter().map(|e| of(e, true)))?;
        self.prefill.plan.make(&self.prefill.config, extents.iter().map(|e| of(e, false)))?;
        self.planned = Some(Planned {
            generation: next_generation(),
            num_tokens: batch.num_tokens(),
            num_blocks,
            block_size: batch.block_size,
        });
        Ok(())
    }

    /// Queues a layer's attention for the step in `step`, whose `group`-th group this is.
    ///
    /// In capture both kernels are queued, whatever rows the step has: a replay may have others.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `args`, or `step` where its upload was not of
    /// the plan made last, nothing being queued then; what the driver refuses.
    ///
    /// # Safety
    /// * This work is ordered behind the step's upload, and before any later upload to that buffer.
    /// * The addresses among `args` are 0, or those of as many numbers as they are said to have; in
    ///   capture the LSE's of as many as the limits' tokens have.
    /// * All runs of this `Attention` are in one order: on one stream, or on streams that wait for
    ///   each other. They share states and counters.
    /// * In capture, all this holds whenever the graph is launched, and steps uploaded for it have
    ///   the same groups and caches of the same block size, with all blocks within those captured.
    pub unsafe fn run(
        &self,
        stream: &CudaStream,
        step: &StepBuffer,
        group: usize,
        args: &AttentionArgs,
    ) -> Result<()> {
        let Some(planned) = self.planned else {
            return Err(Error::argument("plan", "there is none: plan a step first"));
        };
        if step.generation(group) != Some(planned.generation) {
            return Err(Error::argument("step", "does not hold the plan made last as this group"));
        }
        if stream.cuda().context() != self.cuda().context() {
            return Err(Error::argument("stream", "is one of another device than the kernels"));
        }
        if step.cuda().context() != self.cuda().context() {
            return Err(Error::argument("step", "is on another device than the kernels"));
        }
        let capturing = stream.is_capturing()?;
        self.check(&planned, args, capturing)?;
        let mut params = self.params(step, args);
        for (nth, side) in [&self.decode, &self.prefill].into_iter().enumerate() {
            if side.plan.parts().is_empty() && !capturing {
                continue;
            }
            params.plan = (2 * group + nth) as u32;
            params.arrived = side.arrived.address();
            // By the limits and not the step: a row's bits must not depend on others' masks.
            let masks = self.limits.max_mask_bytes > 0;
            let kernel = if masks || self.is_general(args) { &side.general } else { &side.plain };
            // SAFETY: these are the kernels' parameters. Plans, states and counters are as large as
            // the limits ask for; tensors and caches are as `args` vouches.
            unsafe { kernel.launch(stream, &side.launch, &params, &[]) }?;
        }
        Ok(())
    }

    /// Whether the rules are more than a scale and causality.
    fn is_general(&self, args: &AttentionArgs) -> bool {
        let config = &self.config;
        config.window_left.is_some()
            || config.soft_cap.is_some()
            || args.alibi_slopes != 0
            || config.scale <= 0.0
    }

    fn params(&self, step: &StepBuffer, args: &AttentionArgs) -> inflight_attention_params {
        let config = &self.config;
        let [[k_block, k_token, k_head], [v_block, v_token, v_head]] = args.cache.strides();
        let (k, v) = args.cache.addresses();
        let (k_scale, v_scale, scale_stride) = args.cache.scales();
        let ((q_token, q_head), (o_token, o_head)) = (args.q.strides(), args.o.strides());
        inflight_attention_params {
            step: step.address(),
            q: args.q.address(),
            o: args.o.address(),
            lse: args.lse,
            k,
            v,
            q_token,
            q_head,
            o_token,
            o_head,
            k_block,
            k_token,
            k_head,
            v_block,
            v_token,
            v_head,
            k_scale,
            v_scale,
            alibi_slopes: args.alibi_slopes,
            sinks: args.sinks,
            state_o: self.state_o.address(),
            state_ml: self.state_ml.address(),
            arrived: 0,
            plan: 0,
            num_q_heads: config.num_q_heads as u32,
            num_kv_heads: config.num_kv_heads as u32,
            head_dim: config.head_dim as u32,
            scale: config.scale,
            soft_cap: config.soft_cap.unwrap_or(0.0),
            window_left: config.window_left.unwrap_or(params::INFLIGHT_NO_WINDOW),
            flags: if config.causal { params::INFLIGHT_CAUSAL } else { 0 },
            scale_stride,
            reserved: 0,
        }
    }

    fn check(&self, planned: &Planned, args: &AttentionArgs, capturing: bool) -> Result<()> {
        let AttentionConfig { num_q_heads, num_kv_heads, head_dim, q_dtype, kv_dtype, .. } =
            self.config;
        // A graph may be replayed with the largest step.
        let tokens = if capturing { self.limits.max_tokens } else { planned.num_tokens };
        args.q.check("q", q_dtype, tokens, num_q_heads, head_dim)?;
        args.o.check("o", q_dtype, tokens, num_q_heads, head_dim)?;
        let layout = args.cache.layout();
        if (layout.dtype, layout.num_heads, layout.head_dim) != (kv_dtype, num_kv_heads, head_dim) {
            let reason = format!(
                "{} heads of {} {}, not {num_kv_heads} of {head_dim} {kv_dtype}",
                layout.num_heads, layout.head_dim, layout.dtype
            );
            return Err(Error::argument("cache", reason));
        }
        let (blocks, size) = (planned.num_blocks, planned.block_size);
        if layout.num_blocks < blocks || layout.block_size != size {
            let reason = format!(
                "{} blocks of {}, planned for {blocks} of {size}",
                layout.num_blocks, layout.block_size
            );
            return Err(Error::argument("cache", reason));
        }
        for (field, address) in
            [("lse", args.lse), ("alibi_slopes", args.alibi_slopes), ("sinks", args.sinks)]
        {
            if !address.is_multiple_of(4) {
                return Err(Error::argument(field, "is not at a multiple of 4 bytes"));
            }
        }
        Ok(())
    }

    /// The device it is on.
    pub(super) fn cuda(&self) -> &Arc<Cuda> {
        self.state_o.cuda()
    }

    /// Bytes of its plans in a step buffer.
    pub(super) fn plan_bytes(&self) -> usize {
        let bytes = |side: &Side| self.limits.plan_bytes(side.config.shares, &side.bounds);
        bytes(&self.decode) + bytes(&self.prefill)
    }

    /// Its plans, each with the step's mask.
    pub(super) fn plans(&self) -> impl Iterator<Item = (&Plan, Option<Mask<'_>>)> {
        let OwnedMask { bits, indptr, widths } = &self.mask;
        let mask = self.has_mask.then_some(Mask { bits, indptr, widths });
        [&self.decode, &self.prefill].into_iter().map(move |side| (&side.plan, mask))
    }

    /// A number that no other plan has.
    pub(super) fn generation(&self) -> u64 {
        self.planned.map_or(0, |planned| planned.generation)
    }

    /// Blocks that the plan made last is for.
    pub(super) fn num_blocks(&self) -> Option<usize> {
        self.planned.map(|planned| planned.num_blocks)
    }

    /// Whether the plan made last is of this batch, as far as lengths go.
    pub(super) fn is_planned_for(&self, batch: &BatchView<'_>) -> bool {
        let row = |(row, extent): (usize, &Extent)| {
            let q_len = batch.qo_indptr[row + 1] - batch.qo_indptr[row];
            *extent == Extent { q_len, kv_len: batch.kv_len(row) }
        };
        self.planned.is_some_and(|planned| planned.block_size == batch.block_size)
            && self.extents.len() == batch.num_rows()
            && self.extents.iter().enumerate().all(row)
    }
}

fn next_generation() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Queries of a row that the decode kernel takes at most.
fn few_queries(config: &AttentionConfig) -> u32 {
    params::INFLIGHT_DECODE_ROWS / config.group_size() as u32
}

/// The head dimension of the kernel for a configuration, whose other limits are checked too.
fn kernel_dim(config: &AttentionConfig) -> Result<usize> {
    let refused = |field, reason: String| Err(Error::argument(field, reason));
    if config.q_dtype == DType::F32 {
        return refused("q_dtype", "is f32: on GPUs it is f16 or bf16".into());
    }
    let group = config.group_size();
    if group > params::INFLIGHT_PREFILL_ROWS as usize {
        let most = params::INFLIGHT_PREFILL_ROWS;
        return refused("num_q_heads", format!("are {group} a KV head, and {most} are the most"));
    }
    let fits = DIMS.into_iter().find(|&dim| dim >= config.head_dim);
    match (config.head_dim, fits) {
        (64 | 80 | 96 | 112 | 128 | 192 | 256, Some(dim)) => Ok(dim),
        (dim, _) => {
            let dims = "64, 80, 96, 112, 128, 192 or 256";
            refused("head_dim", format!("{dim} has no kernel for GPUs: {dims} have"))
        }
    }
}

/// What distinguishes the two kernels.
struct ShapeOf {
    family: &'static str,
    dim: usize,
    block: Block,
    /// Queries of a tile.
    q_tile: u32,
    costs: Costs,
}

fn decode_shape(dim: usize, config: &AttentionConfig) -> ShapeOf {
    let key = (2 * config.head_dim * config.kv_dtype.size()) as u32;
    ShapeOf {
        family: "decode",
        dim,
        block: shapes::decode(dim, config.kv_dtype),
        q_tile: few_queries(config).max(1),
        // Bytes that a multiprocessor reads in the microsecond that a part takes to start and end.
        costs: Costs { tile: 32 << 10, key, query_key: 0 },
    }
}

fn prefill_shape(dim: usize, config: &AttentionConfig) -> ShapeOf {
    let group = config.group_size();
    let key = (config.head_dim * config.kv_dtype.size()) as u32;
    ShapeOf {
        family: "prefill",
        dim,
        block: shapes::prefill(dim, config.kv_dtype),
        q_tile: (params::INFLIGHT_PREFILL_ROWS / group as u32).max(1),
        // In the same unit, by a multiprocessor's rate of products: d * 4 operations a query and key.
        costs: Costs {
            tile: 64 << 10,
            key,
            query_key: (config.head_dim * group / 32).max(1) as u32,
        },
    }
}

impl Side {
    fn new(
        kernels: &Kernels,
        config: &AttentionConfig,
        limits: &StepLimits,
        shape: &ShapeOf,
    ) -> Result<Self> {
        let ShapeOf { family, dim, block: Block { threads, shared, keys }, q_tile, costs } = *shape;
        let q = config.q_dtype.name();
        let kv = if config.kv_dtype == DType::Fp8E4m3 { "e4m3" } else { "same" };
        let file = format!("{family}_{q}_{kv}_d{dim}");
        let load = |suffix: &str| {
            let name = CString::new(format!("inflight_{file}{suffix}")).expect("no zero in it");
            kernels.prepare(&file, &name, shared)
        };
        let (plain, general) = (load("")?, load("_general")?);
        let cuda = kernels.cuda();
        let blocks = plain.blocks_per_multiprocessor(threads, shared)?;
        let blocks = blocks.min(general.blocks_per_multiprocessor(threads, shared)?).max(1);
        let shares = blocks * cuda.info().multiprocessors;
        let plan = PlanConfig {
            shares,
            heads: config.num_kv_heads as u32,
            joint_q: 0,
            q_tile,
            // Batch-invariant splits are at multiples of 128.
            kv_granularity: if config.fixed_split.is_some() { 128 } else { keys },
            causal: config.causal,
            window_left: config.window_left,
            fixed_split: config.fixed_split,
            split_q: few_queries(config).max(1),
            costs,
        };
        let [rows, tokens, keys] =
            [limits.max_rows, limits.max_tokens, limits.max_kv_len].map(|n| n as u32);
        let bounds = plan.bounds(rows, tokens, keys);
        let arrived = CudaBuffer::new(cuda, (bounds.merges as usize).max(1) * size_of::<u32>())?;
        let stream = CudaStream::new(cuda)?;
        stream.fill(&arrived, 0, arrived.len(), 0)?;
        stream.synchronize()?;
        let launch = Launch::new(shares, threads, shared);
        Ok(Self { plain, general, launch, config: plan, plan: Plan::default(), bounds, arrived })
    }
}
