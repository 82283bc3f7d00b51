//! Attention over a paged cache: what it is made for.

use std::ffi::c_void;
use std::sync::Arc;

use super::device::{backend, inflight_device};
use super::ffi::{
    Exclusive, Handle, Result, Versioned, call, count, create, flag, free, output, read, versioned,
};
use super::status::{Failure, inflight_error, inflight_status};
use super::tensor::dtype_of;
use crate::kernels::{Attention, AttentionConfig, StepLimits, Workspace};

/// No window: queries see keys however far back.
pub const INFLIGHT_NO_WINDOW: u32 = u32::MAX;

/// The attention of a group of layers: same heads, types, window and mask.
///
/// Initialise it with `inflight_attention_config_init`, then set at least `num_q_heads`,
/// `num_kv_heads`, `head_dim` and `q_dtype`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_attention_config {
    /// `sizeof(inflight_attention_config)`.
    pub struct_size: usize,
    /// Query heads: a multiple of `num_kv_heads`; at most 65536, and on a GPU 128 a KV head.
    pub num_q_heads: u32,
    /// KV heads; at least 1.
    pub num_kv_heads: u32,
    /// Elements per head: a multiple of 8 up to 256; on a GPU 64, 80, 96, 112, 128, 192 or 256.
    pub head_dim: u32,
    /// Type of queries and outputs, `INFLIGHT_DTYPE_*`: F32 (on a processor only), F16 or BF16.
    pub q_dtype: u32,
    /// Type of the cache, `INFLIGHT_DTYPE_*`: that of the queries, or FP8_E4M3; 0 (the default) for
    /// that of the queries.
    pub kv_dtype: u32,
    /// Factor of the dot products, within 1e30 of 0; 0 (the default) for `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// 1 (the default) if a query sees no key after its own position.
    pub causal: u32,
    /// Keys a query sees before its own position; `INFLIGHT_NO_WINDOW` (the default) for all.
    pub window_left: u32,
    /// Logits are bent to stay below this; 0 (the default) for no bend.
    pub soft_cap: f32,
    /// Batch-invariant mode: a row's result depends on nothing but the row, bit by bit. The keys of
    /// a row are then split at multiples of this many, itself a multiple of 128 (2048 is usual); 0
    /// (the default) for the fastest division.
    pub fixed_split: u32,
    /// Memory of a GPU for splitting rows, at a multiple of 16 bytes; NULL (the default) for the
    /// library's own, and on a processor. It may hold anything, and attentions that run one after
    /// another may share it: see `inflight_attention_workspace_size`.
    pub workspace: *mut c_void,
    /// Bytes of `workspace`: at least what `inflight_attention_workspace_size` tells; 0 where it is
    /// NULL.
    pub workspace_size: u64,
}

versioned! {
    inflight_attention_config_init(config: inflight_attention_config ..= workspace_size) {
        causal: 1,
        window_left: INFLIGHT_NO_WINDOW,
    }
}

impl inflight_attention_config {
    fn config(&self) -> Result<AttentionConfig> {
        let q_dtype = dtype_of("q_dtype", self.q_dtype)?;
        let (heads, dim) = (self.num_q_heads as usize, self.head_dim as usize);
        let plain = AttentionConfig::new(heads, self.num_kv_heads as usize, dim, q_dtype);
        let config = AttentionConfig {
            kv_dtype: match self.kv_dtype {
                0 => q_dtype,
                other => dtype_of("kv_dtype", other)?,
            },
            scale: if self.scale == 0.0 { plain.scale } else { self.scale },
            causal: flag("causal", self.causal)?,
            window_left: (self.window_left != INFLIGHT_NO_WINDOW).then_some(self.window_left),
            soft_cap: (self.soft_cap != 0.0).then_some(self.soft_cap),
            fixed_split: (self.fixed_split != 0).then_some(self.fixed_split),
            ..plain
        };
        config.check()?;
        Ok(config)
    }

    /// The caller's workspace.
    fn workspace(&self) -> Result<Option<Workspace>> {
        let bytes = count("workspace_size", self.workspace_size)?;
        if self.workspace.is_null() {
            return match bytes {
                0 => Ok(None),
                bytes => Err(Failure::argument("workspace", format!("is NULL, of {bytes} bytes"))),
            };
        }
        // SAFETY: as the caller of `inflight_attention_create` promises.
        Ok(Some(unsafe { Workspace::new(self.workspace.addr() as u64, bytes) }))
    }
}

/// The largest steps that something is made for: later calls refuse larger ones. On a GPU memory is
/// allocated for them once; a captured graph may be replayed with any step within them.
///
/// Initialise it with `inflight_step_limits_init`, then set at least `max_rows`, `max_tokens`,
/// `max_blocks` and `max_kv_len`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_step_limits {
    /// `sizeof(inflight_step_limits)`.
    pub struct_size: usize,
    /// Rows, empty ones included: 1 to 2^30, as the next three.
    pub max_rows: u32,
    /// Query tokens.
    pub max_tokens: u32,
    /// Entries of all block tables together.
    pub max_blocks: u32,
    /// Keys of a row.
    pub max_kv_len: u32,
    /// Bytes of masks, up to 2^30; 0 (the default) for steps without.
    pub max_mask_bytes: u32,
    /// 0.
    pub reserved: u32,
}

versioned! {
    inflight_step_limits_init(limits: inflight_step_limits ..= reserved) where reserved is 0 {}
}

/// The limits of the caller's, which whatever is made with them checks.
///
/// # Safety
/// `limits` is NULL or the caller's.
pub(super) unsafe fn limits_of(limits: *const inflight_step_limits) -> Result<StepLimits> {
    // SAFETY: as the caller promises.
    let given = unsafe { read("limits", limits) }?;
    Ok(StepLimits {
        max_rows: given.max_rows as usize,
        max_tokens: given.max_tokens as usize,
        max_blocks: given.max_blocks as usize,
        max_kv_len: given.max_kv_len as usize,
        max_mask_bytes: given.max_mask_bytes as usize,
    })
}

/// Varlen paged attention for one attention group of a model: prefill, chunked prefill, decode and
/// any mixture of them.
///
/// Once per step `inflight_attention_plan`, then `inflight_step_buffer_upload`; then once per layer
/// `inflight_append` and `inflight_attention_run`. Needs no scheduler: an `inflight_batch` says what
/// the rows are.
///
/// Results: the softmax over a query's keys, summed in f32; a query without keys gives 0 and an LSE
/// of minus infinity. The same plan gives the same bits.
///
/// One thread at a time: a call that finds another inside returns IN_USE. Layers that run at the same
/// time need one each, and a step buffer each.
pub struct inflight_attention {
    /// Step buffers know it as well.
    pub(super) state: Arc<Exclusive<Attention>>,
}

impl Handle for inflight_attention {}

/// Attention on a device, for steps within `limits`.
///
/// On a GPU it loads kernels, and takes the memory of split rows from `config->workspace` or, where
/// that is NULL, allocates it. Besides, it allocates counters of 4 bytes per tile that can be split.
/// Nothing is allocated later. On a processor memory grows with the steps, and steps of like size
/// allocate nothing.
///
/// Outputs: `*out`, to be freed with `inflight_attention_free`; NULL on failure.
/// Fails: INVALID_ARGUMENT naming the field of `config` or `limits`: `workspace_size` where that is
/// too little, `workspace` where that is not at a multiple of 16 bytes, is not memory that the driver
/// knows, or is given on a processor; STRUCT_SIZE, NO_KERNEL_IMAGE, OUT_OF_DEVICE_MEMORY, CUDA.
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_attention_create(
    device: *const inflight_device,
    config: *const inflight_attention_config,
    limits: *const inflight_step_limits,
    out: *mut *mut inflight_attention,
    error: *mut inflight_error,
) -> inflight_status {
    let make = || {
        // SAFETY: NULL or a device that lives.
        let backend = unsafe { backend(device) }?;
        // SAFETY: NULL or a config.
        let given = unsafe { read("config", config) }?;
        // SAFETY: NULL or limits.
        let limits = unsafe { limits_of(limits) }?;
        let made = Attention::new(&backend, given.config()?, limits, given.workspace()?);
        let attention = made.map_err(|error| {
            Failure::from(error).renamed(&[("workspace.bytes", "workspace_size")])
        })?;
        Ok(inflight_attention { state: Arc::new(Exclusive::new(attention)) })
    };
    // SAFETY: `out` and `error` are NULL or the caller's to be written.
    unsafe { create("out", out, error, make) }
}

/// Frees an attention. NULL does nothing. Step buffers made with it keep what they need of it. On a
/// GPU this waits for the device's work, unless such a step buffer is left.
///
/// Threads: any, while no other call uses it. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_attention_free(attention: *mut inflight_attention) {
    // SAFETY: NULL, or from `inflight_attention_create` and not used any more.
    unsafe { free(attention) }
}

/// Memory of a GPU that an attention of this configuration and these limits takes for splitting rows:
/// asked before it is created, to pass that much in `config->workspace`, which is not looked at here.
/// It loads the attention's kernels, whose occupancy of the device decides, and they stay loaded.
///
/// A workspace stays the caller's. It may hold anything before a run, and does after it, so it needs
/// no initialisation, and between runs may serve for something else. Attentions whose runs are in one
/// order, on one stream or by the caller's events, may share one of the largest size among them, and
/// should: those of a model's layers run one after another. Those that run at the same time need one
/// each. It must live until all runs with it are done, and no graph that captured one is launched any
/// more; freeing the attention does not free it.
///
/// Outputs: `*bytes`; 0 on a processor.
/// Fails: INVALID_ARGUMENT naming `bytes` or the field of `config` or `limits`, STRUCT_SIZE,
/// NO_KERNEL_IMAGE, CUDA.
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_attention_workspace_size(
    device: *const inflight_device,
    config: *const inflight_attention_config,
    limits: *const inflight_step_limits,
    bytes: *mut u64,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or the caller's to be written.
        let bytes = unsafe { output("bytes", bytes) }?;
        // SAFETY: NULL or a device that lives.
        let backend = unsafe { backend(device) }?;
        // SAFETY: NULL or a config.
        let config = unsafe { read("config", config) }?.config()?;
        // SAFETY: NULL or limits.
        let limits = unsafe { limits_of(limits) }?;
        bytes.write(Attention::workspace_bytes(&backend, &config, &limits)? as u64);
        Ok(())
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}
