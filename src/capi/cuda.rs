//! What calls about GPUs share.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use super::attention::Limits;
use super::guard::Result;
use super::kv::{Layer, Scales, failure, inflight_kv_cache};
use super::status::Failure;
use super::tensor::{inflight_tensor, tensor_of};
use crate::device::cuda::{Cuda, CudaStream};
use crate::kernels::cuda::{
    Append, Attention, DeviceCache, DeviceScales, DeviceTensor, Fusion, Merge, StepLimits,
    Workspace,
};
use crate::kernels::{AttentionConfig, DType};

/// A GPU, and the kernels that are for no attention in particular, loaded when first asked for.
#[derive(Debug)]
pub(super) struct CudaBackend {
    pub(super) cuda: Arc<Cuda>,
    appends: Mutex<HashMap<(DType, DType), Arc<Append>>>,
    merges: Mutex<HashMap<DType, Arc<Merge>>>,
}

impl CudaBackend {
    pub(super) fn new(ordinal: usize) -> Result<Self> {
        let cuda = Cuda::new(ordinal)?;
        Ok(Self { cuda, appends: Mutex::default(), merges: Mutex::default() })
    }

    /// Attention in the caller's memory, or in its own.
    pub(super) fn attention(
        &self,
        config: AttentionConfig,
        limits: StepLimits,
        workspace: Option<Workspace>,
    ) -> Result<Attention> {
        let (cuda, fusion) = (&self.cuda, Fusion::default());
        let made = match workspace {
            None => Attention::with_fusion(cuda, config, limits, fusion),
            Some(given) => Attention::with_workspace(cuda, config, limits, fusion, given),
        };
        made.map_err(|error| Failure::from(error).renamed(&[("workspace.bytes", "workspace_size")]))
    }

    /// Bytes of the workspace that such an attention asks for.
    pub(super) fn workspace_bytes(
        &self,
        config: &AttentionConfig,
        limits: &StepLimits,
    ) -> Result<usize> {
        Ok(Attention::workspace_bytes(&self.cuda, config, limits, Fusion::default())?)
    }

    /// The kernel that appends new keys of one type to caches of another.
    pub(super) fn append(&self, new: DType, cache: DType) -> Result<Arc<Append>> {
        let mut loaded = self.appends.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(append) = loaded.get(&(new, cache)) {
            return Ok(Arc::clone(append));
        }
        let append = Append::new(&self.cuda, new, cache)
            .map_err(|error| Failure::from(error).renamed(&[("new", "k")]))?;
        let append = Arc::new(append);
        loaded.insert((new, cache), Arc::clone(&append));
        Ok(append)
    }

    /// The kernel that merges outputs of a type.
    pub(super) fn merge(&self, dtype: DType) -> Result<Arc<Merge>> {
        let mut loaded = self.merges.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(merge) = loaded.get(&dtype) {
            return Ok(Arc::clone(merge));
        }
        let merge = Merge::new(&self.cuda, dtype)
            .map_err(|error| Failure::from(error).renamed(&[("dtype", "o")]))?;
        let merge = Arc::new(merge);
        loaded.insert(dtype, Arc::clone(&merge));
        Ok(merge)
    }

    /// The caller's stream.
    ///
    /// # Safety
    /// It is NULL, or a stream that lives.
    pub(super) unsafe fn stream(&self, stream: *mut c_void) -> Result<CudaStream> {
        // SAFETY: as the caller promises.
        Ok(unsafe { CudaStream::borrowed(&self.cuda, stream) }?)
    }
}

/// The tensor in the device's memory.
///
/// # Safety
/// `tensor` is NULL or the caller's; the rest as [`DeviceTensor::new`].
pub(super) unsafe fn device_tensor(
    field: &'static str,
    tensor: *const inflight_tensor,
) -> Result<DeviceTensor> {
    // SAFETY: as the caller promises.
    let tensor = unsafe { tensor_of(field, tensor) }?;
    let (dtype, shape) = tensor.parts(field)?;
    let address = tensor.data.addr() as u64;
    // SAFETY: as the caller promises; `parts` found it aligned.
    Ok(unsafe { DeviceTensor::new(address, dtype, shape) })
}

impl inflight_kv_cache {
    /// The cache in the device's memory.
    ///
    /// # Safety
    /// As [`DeviceCache::new`].
    pub(super) unsafe fn device(&self) -> Result<DeviceCache> {
        let Layer { layout, k, v, scales } = self.try_into()?;
        let scales = scales.map(|Scales { k, v, per_head }| DeviceScales {
            k: k.addr() as u64,
            v: v.addr() as u64,
            per_head,
        });
        let (k, v) = (k.addr() as u64, v.addr() as u64);
        // SAFETY: as the caller promises.
        unsafe { DeviceCache::new(k, v, layout, scales) }.map_err(failure)
    }
}

impl From<Limits> for StepLimits {
    fn from(limits: Limits) -> Self {
        Self {
            max_rows: limits.rows,
            max_tokens: limits.tokens,
            max_blocks: limits.blocks,
            max_kv_len: limits.kv_len,
            max_mask_bytes: limits.mask_bytes,
        }
    }
}
