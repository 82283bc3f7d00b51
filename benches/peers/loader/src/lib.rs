//! Attention on a GPU as a few C functions, for `benches/peers/peers.py` to call by ctypes: bf16,
//! over a contiguous cache `[blocks, block_size, kv_heads, head_dim]`, on the caller's memory and
//! stream. No interface to build on.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_void};
use std::ptr;
use std::sync::Arc;

use inflight::device::cuda::{Cuda, CudaStream};
use inflight::kernels::cuda::{Attention, StepBuffer};
use inflight::kernels::tensor::Shape;
use inflight::kernels::{
    AttentionArgs, AttentionConfig, BatchView, DType, DeviceCache, DeviceTensor, KvLayout,
    StepArrays, StepLimits,
};
use inflight::{BlockId, Error, Result};

/// What attention is for, and the largest steps.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    device: u32,
    q_heads: u32,
    kv_heads: u32,
    head_dim: u32,
    block_size: u32,
    num_blocks: u32,
    causal: u32,
    max_rows: u32,
    max_tokens: u32,
    max_table: u32,
    max_kv_len: u32,
}

/// Attention with room for a step.
#[derive(Debug)]
pub struct Loader {
    cuda: Arc<Cuda>,
    attention: Attention,
    step: StepBuffer,
    sizes: Sizes,
    tokens: usize,
}

thread_local! {
    static SAID: RefCell<CString> = RefCell::default();
}

/// Keeps what went wrong for [`inflight_loader_error`].
fn said<T>(result: Result<T>) -> Option<T> {
    let keep = |error: Error| {
        let text = CString::new(error.to_string()).unwrap_or_default();
        SAID.with(|said| *said.borrow_mut() = text);
    };
    result.map_err(keep).ok()
}

/// What went wrong last on this thread, until something else does.
#[unsafe(no_mangle)]
pub extern "C" fn inflight_loader_error() -> *const c_char {
    SAID.with(|said| said.borrow().as_ptr())
}

/// Loads kernels; null where that fails.
///
/// # Safety
/// `sizes` is one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_loader_create(sizes: *const Sizes) -> *mut Loader {
    // SAFETY: as the caller says.
    let sizes = unsafe { *sizes };
    said(Loader::new(sizes)).map_or(ptr::null_mut(), |loader| Box::into_raw(Box::new(loader)))
}

/// Plans a step and queues its upload: 0, or -1 where that fails.
///
/// # Safety
/// `loader` is one in no other use, `stream` a stream of its device or null; arrays are
/// those of [`BatchView`] for so many rows.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_loader_plan(
    loader: *mut Loader,
    stream: *mut c_void,
    rows: u32,
    qo_indptr: *const u32,
    kv_indptr: *const u32,
    kv_indices: *const u32,
    kv_last_page_len: *const u32,
) -> i32 {
    // SAFETY: as the caller says.
    let loader = unsafe { &mut *loader };
    let rows = rows as usize;
    // SAFETY: as the caller says.
    let qo_indptr = unsafe { std::slice::from_raw_parts(qo_indptr, rows + 1) };
    // SAFETY: as the caller says.
    let kv_indptr = unsafe { std::slice::from_raw_parts(kv_indptr, rows + 1) };
    // SAFETY: as the caller says; there are as many as the last of `kv_indptr`.
    let table = unsafe { std::slice::from_raw_parts(kv_indices, kv_indptr[rows] as usize) };
    // SAFETY: as the caller says.
    let kv_last_page_len = unsafe { std::slice::from_raw_parts(kv_last_page_len, rows) };
    let table: Vec<BlockId> = table.iter().map(|&block| BlockId(block)).collect();
    let block_size = loader.sizes.block_size as usize;
    let batch =
        BatchView { qo_indptr, kv_indptr, kv_indices: &table, kv_last_page_len, block_size };
    // SAFETY: the stream lives as long as the call.
    let stream = unsafe { CudaStream::borrowed(&loader.cuda, stream) };
    let planned = stream.and_then(|stream| loader.plan(&stream, batch));
    said(planned).map_or(-1, |()| 0)
}

/// Queues the attention of the step planned last: 0, or -1 where that fails.
///
/// # Safety
/// As [`inflight_loader_plan`]; addresses are of bf16 tensors of the step and of a cache of the
/// loader's sizes, until the stream is done and whenever a graph with it is launched.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_loader_run(
    loader: *const Loader,
    stream: *mut c_void,
    q: u64,
    k: u64,
    v: u64,
    o: u64,
) -> i32 {
    // SAFETY: as the caller says.
    let loader = unsafe { &*loader };
    // SAFETY: the stream lives as long as the call.
    let stream = unsafe { CudaStream::borrowed(&loader.cuda, stream) };
    // SAFETY: as the caller says.
    said(stream.and_then(|stream| unsafe { loader.run(&stream, q, k, v, o) })).map_or(-1, |()| 0)
}

/// Frees it, after all work that was queued.
///
/// # Safety
/// `loader` is null, or one that is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_loader_destroy(loader: *mut Loader) {
    if !loader.is_null() {
        // SAFETY: made by `inflight_loader_create`, and freed once.
        drop(unsafe { Box::from_raw(loader) });
    }
}

impl Loader {
    fn new(sizes: Sizes) -> Result<Self> {
        let cuda = Cuda::new(sizes.device as usize)?;
        let [heads, kv_heads, dim] =
            [sizes.q_heads, sizes.kv_heads, sizes.head_dim].map(|n| n as usize);
        let config = AttentionConfig {
            causal: sizes.causal != 0,
            ..AttentionConfig::new(heads, kv_heads, dim, DType::Bf16)
        };
        let limits = StepLimits {
            max_rows: sizes.max_rows as usize,
            max_tokens: sizes.max_tokens as usize,
            max_blocks: sizes.max_table as usize,
            max_kv_len: sizes.max_kv_len as usize,
            max_mask_bytes: 0,
        };
        let attention = Attention::new(&cuda, config, limits)?;
        let step = StepBuffer::new(&cuda, limits, &[&attention])?;
        Ok(Self { cuda, attention, step, sizes, tokens: 0 })
    }

    fn plan(&mut self, stream: &CudaStream, batch: BatchView<'_>) -> Result<()> {
        self.attention.plan(batch, self.sizes.num_blocks as usize, None)?;
        let arrays = StepArrays::new(batch);
        self.step.upload(stream, &arrays, &[&self.attention])?;
        self.tokens = batch.num_tokens();
        Ok(())
    }

    /// # Safety
    /// As [`inflight_loader_run`].
    unsafe fn run(&self, stream: &CudaStream, q: u64, k: u64, v: u64, o: u64) -> Result<()> {
        let Sizes { q_heads, kv_heads, head_dim, block_size, num_blocks, .. } = self.sizes;
        let [heads, kv_heads, dim] = [q_heads, kv_heads, head_dim].map(|n| n as usize);
        let (blocks, size) = (num_blocks as usize, block_size as usize);
        let layout = KvLayout::nhd(DType::Bf16, blocks, size, kv_heads, dim);
        let shape = Shape::contiguous(self.tokens, heads, dim);
        // SAFETY: as the caller says.
        let cache = unsafe { DeviceCache::new(k, v, layout, None) }?;
        // SAFETY: as the caller says.
        let q = unsafe { DeviceTensor::new(q, DType::Bf16, shape) };
        // SAFETY: as the caller says.
        let o = unsafe { DeviceTensor::new(o, DType::Bf16, shape) };
        let args = AttentionArgs::new(q, cache, o);
        // SAFETY: as the caller says; all runs of this loader are on the caller's one stream.
        unsafe { self.attention.run(stream, &self.step, 0, &args) }
    }
}
