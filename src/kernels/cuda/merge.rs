//! Merging attention over parts of the keys, on a GPU: shared prefixes, cascades.

use std::sync::Arc;

use super::params::{self, inflight_merge_params};
use crate::device::cuda::{Cuda, CudaStream, Kernel, Kernels, Launch};
use crate::error::{Error, Result};
use crate::kernels::tensor::{DeviceTensor, Shape};
use crate::kernels::{DType, State};

/// The kernel that merges, loaded: for outputs of one type.
#[derive(Debug)]
pub struct Merge {
    kernel: Kernel,
    dtype: DType,
    blocks: u32,
}

impl Merge {
    /// Loads the kernel for outputs of `dtype`, f16 or bf16.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `dtype`; [`Error::NoKernelImage`]; what the driver refuses.
    pub fn new(cuda: &Arc<Cuda>, dtype: DType) -> Result<Self> {
        if !matches!(dtype, DType::F16 | DType::Bf16) {
            return Err(Error::argument("dtype", format!("{dtype} is not f16 or bf16")));
        }
        let file = format!("merge_{}", dtype.name());
        let name = super::kernel_name(&file);
        let kernel = Kernels::new(cuda).prepare(&file, &name, 0)?;
        let threads = params::INFLIGHT_MERGE_THREADS;
        let blocks = kernel.blocks_per_multiprocessor(threads, 0)? * cuda.info().multiprocessors;
        Ok(Self { kernel, dtype, blocks })
    }

    /// Queues merging states over disjoint keys, in the order given, into the attention over all of
    /// them; `lse` is the address of the result's, or 0.
    ///
    /// States have one shape and the same strides; at most 16 of them. States whose LSE is -inf,
    /// or +inf as FlashAttention marks rows without keys, are neutral, their outputs not read; all of
    /// them merge to 0 and -inf. A sink belongs to exactly one of the states.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `states`, `o` or `lse`; what the driver refuses.
    ///
    /// # Safety
    /// * LSE are 0 or the addresses of a number for each token and head, until the work is done and
    ///   whenever a graph with it is launched. A graph merges as many tokens as were captured.
    /// * The result's LSE is not that of a state: some threads write while others still read. Its
    ///   outputs may be a state's.
    pub unsafe fn run(
        &self,
        stream: &CudaStream,
        states: &[State],
        o: DeviceTensor,
        lse: u64,
    ) -> Result<()> {
        let Shape { tokens, heads, head_dim, .. } = o.shape();
        o.check("o", self.dtype, tokens, heads, head_dim)?;
        if head_dim % 8 != 0 || head_dim == 0 {
            let reason = format!("has heads of {head_dim} elements, not a multiple of 8");
            return Err(Error::argument("o", reason));
        }
        let most = params::INFLIGHT_MERGE_MAX as usize;
        if states.is_empty() || states.len() > most {
            let reason = format!("there are {}, not 1 to {most}", states.len());
            return Err(Error::argument("states", reason));
        }
        if !lse.is_multiple_of(4) {
            return Err(Error::argument("lse", "is not at a multiple of 4 bytes"));
        }
        let strides = states[0].o.strides();
        let mut of = ([0; params::INFLIGHT_MERGE_MAX as usize], [0; _]);
        for (i, state) in states.iter().enumerate() {
            state.o.check("states", self.dtype, tokens, heads, head_dim)?;
            if state.o.strides() != strides {
                return Err(Error::argument("states", "their strides differ"));
            }
            if state.lse == 0 || !state.lse.is_multiple_of(4) {
                let reason = format!("the LSE of {i} is null, or not at a multiple of 4 bytes");
                return Err(Error::argument("states", reason));
            }
            (of.0[i], of.1[i]) = (state.o.address(), state.lse);
        }
        if tokens == 0 || heads == 0 {
            return Ok(());
        }
        let (out_token, out_head) = o.strides();
        let params = inflight_merge_params {
            o: of.0,
            lse: of.1,
            out: o.address(),
            out_lse: lse,
            o_token: strides.0,
            o_head: strides.1,
            out_token,
            out_head,
            count: states.len() as u32,
            num_tokens: u32::try_from(tokens)
                .map_err(|_| Error::argument("o", "has more than 2^32 tokens"))?,
            num_heads: heads as u32,
            head_dim: head_dim as u32,
        };
        let items = (heads * head_dim / 8) as u32;
        let rows = items.div_ceil(params::INFLIGHT_MERGE_THREADS).clamp(1, 65_535);
        let columns = params.num_tokens.min(self.blocks.div_ceil(rows)).max(1);
        let launch = Launch::new((columns, rows), params::INFLIGHT_MERGE_THREADS, 0).dependent();
        // SAFETY: these are the kernel's parameters; tensors are as their makers guarantee.
        unsafe { self.kernel.launch(stream, &launch, &params, &[]) }
    }
}
