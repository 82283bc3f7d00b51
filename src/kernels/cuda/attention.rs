//! Varlen paged attention on a GPU.

use std::sync::Arc;

use super::mixed::{Fusion, Mixed};
use super::params::{self, inflight_attention_params, inflight_mixed_params};
use super::sides::Side;
use super::step::StepBuffer;
use super::workspace::{Loaded, Scratch};
use crate::device::cuda::{Cuda, CudaStream};
use crate::error::{Error, Result};
use crate::kernels::attention::check_not_in_place;
use crate::kernels::planned::Planned;
use crate::kernels::{AttentionArgs, AttentionConfig, BatchView, Mask, StepLimits, Workspace};
use crate::plan::{Extent, Plan, PlanConfig};

/// Varlen paged attention for one attention group of a model: prefill, chunked prefill, decode and
/// any mixture of them, causal or not.
///
/// [`plan`](Self::plan) and [`StepBuffer::upload`] once per step, then [`run`](Self::run) once a
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
    planned: Planned,
    /// Whether the plans made last are for one launch.
    fused: bool,
}

impl Attention {
    /// Loads kernels and makes room for steps within `limits`, with [`Fusion::Auto`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `config` or `limits`;
    /// [`Error::NoKernelImage`]; [`Error::OutOfDeviceMemory`]; what the driver refuses.
    pub fn new(cuda: &Arc<Cuda>, config: AttentionConfig, limits: StepLimits) -> Result<Self> {
        Self::with(cuda, config, limits, Fusion::Auto, None)
    }

    /// The same with one launch or two for rows of both kinds, as `fusion` says, and in memory of the
    /// caller's where a `workspace` is given, which others may share.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`Error::InvalidArgument`] naming `fusion` where it is
    /// [`Fusion::Always`] and there is no kernel for rows of both kinds, `workspace.bytes` where it is
    /// smaller than [`workspace_bytes`](Self::workspace_bytes), or `workspace` where it is not at a
    /// multiple of 16, or not memory that the device can reach.
    pub fn with(
        cuda: &Arc<Cuda>,
        config: AttentionConfig,
        limits: StepLimits,
        fusion: Fusion,
        workspace: Option<Workspace>,
    ) -> Result<Self> {
        let loaded = Loaded::new(cuda, &config, &limits, fusion)?;
        let scratch = Scratch::new(cuda, &loaded, workspace)?;
        let Loaded { decode, prefill, mixed, few, .. } = loaded;
        Ok(Self {
            config,
            limits,
            decode,
            prefill,
            mixed,
            few,
            scratch,
            planned: Planned::default(),
            fused: false,
        })
    }

    /// Bytes of the [`Workspace`] that [`with`](Self::with) asks for, and that it allocates where none is
    /// given. Loads the kernels, on whose occupancy it depends; they stay loaded.
    ///
    /// # Errors
    /// As [`with`](Self::with).
    pub fn workspace_bytes(
        cuda: &Arc<Cuda>,
        config: &AttentionConfig,
        limits: &StepLimits,
        fusion: Fusion,
    ) -> Result<usize> {
        Ok(Loaded::new(cuda, config, limits, fusion)?.states.bytes())
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
        self.fused
    }

    /// Forgets the plan made last.
    pub(crate) fn forget_plan(&mut self) {
        self.planned.forget();
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
        self.planned.begin(&self.limits, &batch, num_blocks, mask)?;
        let few = self.few;
        let of = |extent: &Extent, decode: bool| match (extent.q_len <= few) == decode {
            true => *extent,
            // A row without queries has no parts.
            false => Extent { q_len: 0, ..*extent },
        };
        let (extents, sides) = (self.planned.extents(), [&mut self.decode, &mut self.prefill]);
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
        self.fused = shares.is_some();
        self.planned.finish();
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
        self.planned.check_uploaded(step.uploaded(), group)?;
        if stream.cuda().context() != self.cuda().context() {
            return Err(Error::argument("stream", "is one of another device than the kernels"));
        }
        if step.cuda().context() != self.cuda().context() {
            return Err(Error::argument("step", "is on another device than the kernels"));
        }
        let capturing = stream.is_capturing()?;
        self.check(args, capturing)?;
        // By the limits and not the step: a row's bits must not depend on others' masks.
        let masks = self.limits.max_mask_bytes > 0;
        let general = masks || self.is_general(args);
        let sides = [&self.decode, &self.prefill];
        let [decode, prefill] = [0, 1].map(|nth| self.params(step, args, group, nth));
        if let Some(mixed) = &self.mixed
            && (self.fused || capturing && mixed.always)
        {
            let kernel = if general { &mixed.general } else { &mixed.plain };
            // A replay may have plans that are not for one launch, and more blocks.
            let launch = if capturing { &mixed.any } else { &mixed.launch };
            let params = inflight_mixed_params { decode, prefill };
            // SAFETY: these are the kernel's parameters, and it has a block for each share. Plans,
            // states and counters are as large as the limits ask for, and each side has its own;
            // tensors and caches are as `args` guarantees.
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

    fn check(&self, args: &AttentionArgs, capturing: bool) -> Result<()> {
        let AttentionConfig { num_q_heads, head_dim, q_dtype, .. } = self.config;
        // A graph may be replayed with the largest step.
        let tokens = if capturing { self.limits.max_tokens } else { self.planned.num_tokens };
        for (field, tensor) in [("q", &args.q), ("o", &args.o)] {
            tensor.check_room(field, tokens, capturing)?;
            tensor.check(field, q_dtype, tokens, num_q_heads, head_dim)?;
        }
        check_not_in_place(tokens, args.q.address(), args.o.address())?;
        args.cache.check_on_gpu()?;
        self.planned.check_cache(&self.config, args.cache.layout())?;
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

    /// What was planned last.
    pub(crate) fn planned(&self) -> &Planned {
        &self.planned
    }

    /// Its plans, each with the step's mask.
    pub(super) fn plans(&self) -> impl Iterator<Item = (&Plan, Option<Mask<'_>>)> + Clone {
        let mask = self.planned.mask();
        [&self.decode, &self.prefill].into_iter().map(move |side| (&side.plan, mask))
    }
}
