//! Varlen paged attention on a GPU.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::mixed::{Fusion, Mixed};
use super::pack::StepLimits;
use super::params::{self, inflight_attention_params, inflight_mixed_params};
use super::sides::Side;
use super::step::StepBuffer;
use super::tensor::{DeviceCache, DeviceTensor};
use super::workspace::{Loaded, Scratch, Workspace};
use crate::device::cuda::{Cuda, CudaStream};
use crate::error::{Error, Result};
use crate::kernels::attention::check_not_in_place;
use crate::kernels::{AttentionConfig, BatchView, Mask};
use crate::plan::{Extent, Plan, PlanConfig};

/// Varlen paged attention for one attention group of a model: prefill, chunked prefill, decode and
/// any mixture of them, causal or not.
///
/// [`plan`](Self::plan) and [`StepBuffer::upload`] once a step, then [`run`](Self::run) once a
/// layer, all layers on one stream: they share the memory of split tiles. Rows of few queries
/// (at most 16 query heads of a KV head together) are computed by one kernel, others by another, or
/// both at once by a third: see [`Fusion`].
///
/// The same plan gives the same bits. With [`fixed_split`](AttentionConfig::fixed_split) a row's
/// bits are the same in any batch, on any number of multiprocessors, and in one launch or two.
///
/// Tiles that are split take memory for their parts, mostly those of rows with many queries: with
/// head dimension 128 and 264 thread blocks at most 34 MiB. Where one launch may compute all rows,
/// those with few queries have their own besides, an eighth as much. The attention allocates it, or
/// is given a [`Workspace`] of [`workspace_bytes`](Self::workspace_bytes). Counters of parts, 4 bytes
/// a tile that can be split, are always its own: they are 0 between runs.
#[derive(Debug)]
pub struct Attention {
    config: AttentionConfig,
    limits: StepLimits,
    decode: Side,
    prefill: Side,
    mixed: Option<Mixed>,
    /// Queries of a row that `decode` takes at most.
    few: u32,
    scratch: Scratch,
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
    /// Whether it is for one launch.
    fused: bool,
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
    /// Queries: `[tokens, num_q_heads, head_dim]`. Tokens beyond the step's are not looked at. In
    /// capture there are the limits' `max_tokens` of them, as there are of `o`, since a replay may
    /// have a larger step.
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
    /// Loads kernels and makes room for steps within `limits`, with [`Fusion::Auto`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `config` or `limits`;
    /// [`Error::NoKernelImage`]; [`Error::OutOfDeviceMemory`]; what the driver refuses.
    pub fn new(cuda: &Arc<Cuda>, config: AttentionConfig, limits: StepLimits) -> Result<Self> {
        Self::with_fusion(cuda, config, limits, Fusion::Auto)
    }

    /// The same with one launch or two for rows of both kinds, as `fusion` says.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`Error::InvalidArgument`] naming `fusion` where it is
    /// [`Fusion::Always`] and there is no kernel for rows of both kinds.
    pub fn with_fusion(
        cuda: &Arc<Cuda>,
        config: AttentionConfig,
        limits: StepLimits,
        fusion: Fusion,
    ) -> Result<Self> {
        let loaded = Loaded::new(cuda, &config, &limits, fusion)?;
        Self::made(cuda, config, limits, loaded, None)
    }

    /// The same in memory of the caller's, which others may share: see [`Workspace`].
    ///
    /// # Errors
    /// As [`with_fusion`](Self::with_fusion), and [`Error::InvalidArgument`] naming
    /// `workspace.bytes` where it is smaller than [`workspace_bytes`](Self::workspace_bytes), or
    /// `workspace` where it is not at a multiple of 16, or not memory that the device can reach.
    pub fn with_workspace(
        cuda: &Arc<Cuda>,
        config: AttentionConfig,
        limits: StepLimits,
        fusion: Fusion,
        workspace: Workspace,
    ) -> Result<Self> {
        let loaded = Loaded::new(cuda, &config, &limits, fusion)?;
        Self::made(cuda, config, limits, loaded, Some(workspace))
    }

    /// Bytes of the [`Workspace`] that [`with_workspace`](Self::with_workspace) asks for, and that
    /// [`with_fusion`](Self::with_fusion) allocates. Loads the kernels, on whose occupancy it depends;
    /// they stay loaded.
    ///
    /// # Errors
    /// As [`with_fusion`](Self::with_fusion).
    pub fn workspace_bytes(
        cuda: &Arc<Cuda>,
        config: &AttentionConfig,
        limits: &StepLimits,
        fusion: Fusion,
    ) -> Result<usize> {
        Ok(Loaded::new(cuda, config, limits, fusion)?.states.bytes())
    }

    fn made(
        cuda: &Arc<Cuda>,
        config: AttentionConfig,
        limits: StepLimits,
        loaded: Loaded,
        given: Option<Workspace>,
    ) -> Result<Self> {
        let scratch = Scratch::new(cuda, &loaded, given)?;
        let Loaded { decode, prefill, mixed, few, .. } = loaded;
        Ok(Self {
            config,
            limits,
            decode,
            prefill,
            mixed,
            few,
            scratch,
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

    /// The plans made last: of rows with few queries, and of others.
    #[must_use]
    pub fn parts(&self) -> [&Plan; 2] {
        [&self.decode.plan, &self.prefill.plan]
    }

    /// Whether the plans made last are for one launch.
    #[must_use]
    pub fn is_fused(&self) -> bool {
        self.planned.is_some_and(|planned| planned.fused)
    }

    /// Forgets the plan made last.
    pub(crate) fn forget_plan(&mut self) {
        self.planned = None;
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
        batch.check(num_blocks)?;
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
        // Without bits it hides nothing, and buffers for steps without masks have no room for it.
        self.has_mask = mask.is_some_and(|mask| !mask.bits.is_empty());
        let few = self.few;
        let of = |extent: &Extent, decode: bool| match (extent.q_len <= few) == decode {
            true => *extent,
            // A row without queries has no parts.
            false => Extent { q_len: 0, ..*extent },
        };
        let (extents, sides) = (&self.extents, [&mut self.decode, &mut self.prefill]);
        let rows = [true, false].map(|decode| extents.iter().map(move |e| of(e, decode)));
        let shares = match &self.mixed {
            Some(mixed) => mixed.divide(
                sides[0].config.cost(rows[0].clone())?,
                sides[1].config.cost(rows[1].clone())?,
            ),
            None => None,
        };
        let own = sides.each_ref().map(|side| side.config.shares);
        for ((side, rows), shares) in sides.into_iter().zip(rows).zip(shares.unwrap_or(own)) {
            side.plan.make(&PlanConfig { shares, ..side.config }, rows)?;
        }
        self.planned = Some(Planned {
            generation: next_generation(),
            num_tokens: batch.num_tokens(),
            num_blocks,
            block_size: batch.block_size,
            fused: shares.is_some(),
        });
        Ok(())
    }

    /// Queues a layer's attention for the step in `step`; `group` is its place among the groups
    /// that the step was uploaded with.
    ///
    /// In capture what is queued computes any later step, in one launch or two, as the step planned
    /// last: so capture graphs with steps like those that they are for.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `args`, or `step` where its upload was not of
    /// the plan made last, nothing being queued then; what the driver refuses.
    ///
    /// # Safety
    /// * This work is ordered behind the step's upload, and before any later upload to that buffer.
    /// * The addresses among `args` are 0, or those of as many numbers as they are said to have; in
    ///   capture the LSE's of as many as the limits' tokens have.
    /// * All runs of this `Attention`, and of those with the same [`Workspace`], are in one order: on
    ///   one stream, or on streams that wait for each other. They share states and counters.
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
        let Some(uploaded) = step.generation(group) else {
            let reason = format!("{group} is not one of those uploaded with the step");
            let nothing = step.generation(0).is_none();
            return Err(match nothing {
                true => Error::argument("step", "holds no plan: upload one"),
                false => Error::argument("group", reason),
            });
        };
        if uploaded != planned.generation {
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
        // By the limits and not the step: a row's bits must not depend on others' masks.
        let masks = self.limits.max_mask_bytes > 0;
        let general = masks || self.is_general(args);
        let sides = [&self.decode, &self.prefill];
        let [decode, prefill] = [0, 1].map(|nth| self.params(step, args, group, nth));
        if let Some(mixed) = &self.mixed
            && (planned.fused || capturing && mixed.always)
        {
            let kernel = if general { &mixed.general } else { &mixed.plain };
            // A replay may have plans that are not for one launch, and more blocks.
            let launch = if capturing { &mixed.any } else { &mixed.launch };
            let params = inflight_mixed_params { decode, prefill };
            // SAFETY: these are the kernel's parameters, and it has a block for each share. Plans,
            // states and counters are as large as the limits ask for, and each side has its own;
            // tensors and caches are as `args` vouches.
            return unsafe { kernel.launch(stream, launch, &params, &[]) };
        }
        for (nth, (side, params)) in sides.into_iter().zip([decode, prefill]).enumerate() {
            if side.plan.parts().is_empty() && !capturing {
                continue;
            }
            let general =
                if nth == 0 { self.is_general_decode(masks, general, args) } else { general };
            let kernel = if general { &side.general } else { &side.plain };
            // SAFETY: as above.
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

    /// The same for decode, whose plain kernel knows windows, and scales of any sign. In
    /// batch-invariant mode it is the kernel that one launch for all rows would have.
    fn is_general_decode(&self, masks: bool, general: bool, args: &AttentionArgs) -> bool {
        let config = &self.config;
        match config.fixed_split {
            Some(_) => general,
            None => masks || config.soft_cap.is_some() || args.alibi_slopes != 0,
        }
    }

    /// What a side of the `group`-th group is given: the first, decode, or the second, prefill.
    fn params(
        &self,
        step: &StepBuffer,
        args: &AttentionArgs,
        group: usize,
        side: usize,
    ) -> inflight_attention_params {
        let config = &self.config;
        let [state_o, state_ml, arrived] = self.scratch.addresses(side == 1);
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
            state_o,
            state_ml,
            arrived,
            plan: (2 * group + side) as u32,
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
        for (field, tensor) in [("q", &args.q), ("o", &args.o)] {
            tensor.check_room(field, tokens, capturing)?;
            tensor.check(field, q_dtype, tokens, num_q_heads, head_dim)?;
        }
        check_not_in_place(tokens, args.q.address(), args.o.address())?;
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
        self.scratch.cuda()
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
