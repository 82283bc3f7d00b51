//! Kernels that are for no attention in particular, loaded when first asked for.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Append, Merge};
use crate::device::cuda::Cuda;
use crate::error::Result;
use crate::kernels::DType;

/// What has been loaded for a device so far.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    appends: Mutex<HashMap<(DType, DType), Arc<Append>>>,
    merges: Mutex<HashMap<DType, Arc<Merge>>>,
}

impl Loaded {
    /// The kernel that appends new keys of one type to caches of another.
    pub(crate) fn append(&self, cuda: &Arc<Cuda>, new: DType, cache: DType) -> Result<Arc<Append>> {
        let mut loaded = self.appends.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(append) = loaded.get(&(new, cache)) {
            return Ok(Arc::clone(append));
        }
        let append = Arc::new(Append::new(cuda, new, cache)?);
        loaded.insert((new, cache), Arc::clone(&append));
        Ok(append)
    }

    /// The kernel that merges outputs of a type.
    pub(crate) fn merge(&self, cuda: &Arc<Cuda>, dtype: DType) -> Result<Arc<Merge>> {
        let mut loaded = self.merges.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(merge) = loaded.get(&dtype) {
            return Ok(Arc::clone(merge));
        }
        let merge = Arc::new(Merge::new(cuda, dtype)?);
        loaded.insert(dtype, Arc::clone(&merge));
        Ok(merge)
    }
}
