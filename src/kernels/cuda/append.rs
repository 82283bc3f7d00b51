//! Appending new keys and values to a cache on a GPU, rotated and quantised on the way.

use std::sync::Arc;

use super::params::{self, inflight_append_params};
use super::shapes;
use super::step::StepBuffer;
use crate::device::cuda::{Cuda, CudaStream, Kernel, Kernels, Launch};
use crate::error::{Error, Result};
use crate::kernels::cpu::{check_queries_apart, check_rotary_dim};
use crate::kernels::rope::RopePairs;
use crate::kernels::{AppendArgs, DType};

/// The kernel that appends, loaded: for new keys of one type and caches of one type.
#[derive(Debug)]
pub struct Append {
    kernel: Kernel,
    new: DType,
    cache: DType,
    blocks: u32,
}

impl Append {
    /// Loads the kernel for new keys and values of `new` (f16 or bf16) and caches of `cache` (the
    /// same, or fp8).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `new` or `cache`; [`Error::NoKernelImage`]; what the driver
    /// refuses.
    pub fn new(cuda: &Arc<Cuda>, new: DType, cache: DType) -> Result<Self> {
        if !matches!(new, DType::F16 | DType::Bf16) {
            return Err(Error::argument("new", format!("{new} is not f16 or bf16")));
        }
        if cache != new && cache != DType::Fp8E4m3 {
            return Err(Error::argument("cache", format!("{cache} is not {new} or fp8-e4m3")));
        }
        let file = format!("append_{}_{}", new.name(), shapes::kv_name(cache));
        let name = super::kernel_name(&file);
        let kernel = Kernels::new(cuda).prepare(&file, &name, 0)?;
        let threads = params::INFLIGHT_APPEND_THREADS;
        let blocks = kernel.blocks_per_multiprocessor(threads, 0)? * cuda.info().multiprocessors;
        Ok(Self { kernel, new, cache, blocks })
    }

    /// Queues writing the step's new keys and values to their slots: one launch for K, V and Q.
    ///
    /// The step's slots say where; a token whose slot is negative is not written. The bytes stored
    /// are those of the [processor's kernel](crate::kernels::cpu::append).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `args`, or `slot_mapping` or `positions` where
    /// the step's are missing or beyond the cache; what the driver refuses. Nothing is written then.
    ///
    /// # Safety
    /// * This work is ordered behind the step's upload, and before any later upload to that buffer.
    /// * The table has `max_position` rows, at an address that the device can read.
    /// * In capture, all this holds whenever the graph is launched, and steps uploaded for it name
    ///   no slot beyond the cache, whose block size is theirs.
    pub unsafe fn run(
        &self,
        stream: &CudaStream,
        step: &StepBuffer,
        args: &AppendArgs,
    ) -> Result<()> {
        if step.cuda().context() != stream.cuda().context() {
            return Err(Error::argument("step", "is on another device than the stream"));
        }
        let capturing = stream.is_capturing()?;
        self.check(step, args, capturing)?;
        let layout = args.cache.layout();
        let ((k_new_token, k_new_head), (v_new_token, v_new_head)) =
            (args.k.strides(), args.v.strides());
        let [[k_block, k_token, k_head], [v_block, v_token, v_head]] = args.cache.strides();
        let (k, v) = args.cache.addresses();
        let (k_scale, v_scale, scale_stride) = args.cache.scales();
        let q = args.rope.and_then(|rope| rope.q);
        let (q_token, q_head) = q.map_or((0, 0), |q| q.strides());
        let num_q_heads = q.map_or(0, |q| q.shape().heads as u32);
        let params = inflight_append_params {
            step: step.address(),
            k_new: args.k.address(),
            v_new: args.v.address(),
            q: q.map_or(0, |q| q.address()),
            k,
            v,
            k_scale,
            v_scale,
            cos_sin: args.rope.map_or(0, |rope| rope.cos_sin),
            k_new_token,
            k_new_head,
            v_new_token,
            v_new_head,
            q_token,
            q_head,
            k_block,
            k_token,
            k_head,
            v_block,
            v_token,
            v_head,
            num_q_heads,
            num_kv_heads: layout.num_heads as u32,
            head_dim: layout.head_dim as u32,
            rope: args.rope.map_or(params::INFLIGHT_ROPE_NONE, |rope| match rope.pairs {
                RopePairs::Half => params::INFLIGHT_ROPE_HALF,
                RopePairs::Interleaved => params::INFLIGHT_ROPE_INTERLEAVED,
            }),
            rotary_dim: args.rope.map_or(0, |rope| rope.rotary_dim as u32),
            max_position: args.rope.map_or(0, |rope| rope.max_position),
            scale_stride,
            reserved: 0,
        };
        let heads = num_q_heads as usize + 2 * layout.num_heads;
        // A replay may have more tokens than this step.
        let tokens = if capturing { step.limits().max_tokens } else { step.num_tokens() } as u32;
        let items = (heads * layout.head_dim).div_ceil(8) as u32;
        let rows = items.div_ceil(params::INFLIGHT_APPEND_THREADS).clamp(1, 65_535);
        let columns = tokens.min(self.blocks.div_ceil(rows)).max(1);
        let launch = Launch::new((columns, rows), params::INFLIGHT_APPEND_THREADS, 0).dependent();
        // SAFETY: these are the kernel's parameters; tensors and cache are as `args` guarantees, and
        // slots are within the cache.
        unsafe { self.kernel.launch(stream, &launch, &params, &[]) }
    }

    fn check(&self, step: &StepBuffer, args: &AppendArgs, capturing: bool) -> Result<()> {
        let layout = args.cache.layout();
        if layout.dtype != self.cache {
            let reason = format!("is {}, and the kernel is for {}", layout.dtype, self.cache);
            return Err(Error::argument("cache", reason));
        }
        // A graph may be replayed with the largest step.
        let tokens = if capturing { step.limits().max_tokens } else { step.num_tokens() };
        let (heads, dim) = (layout.num_heads, layout.head_dim);
        for (field, tensor) in [("k", &args.k), ("v", &args.v)] {
            tensor.check_room(field, tokens, capturing)?;
            tensor.check(field, self.new, tokens, heads, dim)?;
        }
        step.uploaded().check_append(layout, args.rope.is_some())?;
        let Some(rope) = args.rope else { return Ok(()) };
        check_rotary_dim(rope.rotary_dim, dim)?;
        if rope.cos_sin == 0 || rope.cos_sin % 16 != 0 {
            return Err(Error::argument("cos_sin", "is null, or not at a multiple of 16 bytes"));
        }
        if let Some(q) = rope.q {
            q.check_room("q", tokens, capturing)?;
            q.check("q", self.new, tokens, q.shape().heads, dim)?;
            let new = [args.k.address(), args.v.address()];
            check_queries_apart(tokens, Some(q.address()), new)?;
        }
        Ok(())
    }
}
