//! The GPU, as tests of every backend see it.

use half::f16;
use inflight::batch::RaggedBatch;
use inflight::device::cuda::{CudaBuffer, PinnedBuffer};
use inflight::kernels::cuda::{
    Append, AppendArgs, Attention, AttentionArgs, BlockMover, DeviceCache, DeviceTensor,
    StepArrays, StepBuffer, StepLimits,
};
use inflight::kernels::tensor::Shape;
use inflight::kernels::{AttentionConfig, BatchView, DType, KvLayout};
use inflight::{Config, Result};

use crate::attention::{Answer, Case, TokenLayout};
use crate::gpu::{self, Gpu};

pub(crate) const DIMS: &[usize] = inflight::kernels::cuda::HEAD_DIMS;
pub(crate) const GROUPS: &[usize] = &[1, 3, 4, 5, 7, 8, 16];
pub(crate) const TYPES: &[(DType, DType)] = &gpu::TYPES;
/// Tensors begin, and strides are, at multiples of 16 bytes.
pub(crate) const TOKEN_LAYOUTS: &[TokenLayout] =
    &[TokenLayout::Contiguous, TokenLayout::Packed, TokenLayout::Gaps, TokenLayout::HeadMajor];
/// Random cases, and the products of one, at most: the emulator's time.
pub(crate) const CASES: usize = 300;
pub(crate) const MOST_WORK: usize = 6_000_000;
/// Query heads a KV head of cases made by hand: few for one kernel, many for the other.
pub(crate) const BY_HAND: &[usize] = &[1, 32];

pub(crate) fn is_there() -> bool {
    gpu::gpu().is_some()
}

/// What the GPU answers, with another order of its threads each turn.
pub(crate) fn answers(case: &mut Case, turn: usize) -> Vec<(String, Answer)> {
    let Some(gpu) = gpu::gpu() else { return Vec::new() };
    gpu.set_seed(turn as u64);
    let answer = gpu::answer(&gpu, case);
    assert_eq!(gpu.reports(), Vec::<String>::new(), "{:?}", case.spec);
    vec![("GPU".into(), answer)]
}

/// Type and head dimension of a scheduler's steps.
pub(crate) const STEPS_TYPE: DType = DType::F16;
pub(crate) const STEPS_DIM: usize = 64;

/// A layer of a model, with its cache: block operations, append and attention of a step.
pub(crate) trait Layer {
    fn name(&self) -> String;

    /// Outputs of these new queries, keys and values, `[token, head, dim]` each.
    fn run(&mut self, batch: &RaggedBatch, qkv: [&[f32]; 3]) -> Result<Vec<f32>>;
}

pub(crate) type MakeLayer = Box<dyn Fn(AttentionConfig, &Config) -> Box<dyn Layer>>;

/// One on the GPU.
pub(crate) fn layers(turn: usize) -> Vec<MakeLayer> {
    let make = move |config, limits: &Config| -> Box<dyn Layer> {
        let gpu = gpu::gpu().expect("it was there");
        gpu.set_seed(turn as u64);
        Box::new(OnGpu::new(gpu, config, limits).expect("a layer"))
    };
    if is_there() { vec![Box::new(make)] } else { Vec::new() }
}

struct OnGpu {
    attention: Attention,
    append: Append,
    mover: BlockMover,
    step: StepBuffer,
    cache: DeviceCache,
    layout: KvLayout,
    _device: [CudaBuffer; 2],
    _host: [PinnedBuffer; 2],
    gpu: Gpu,
}

impl OnGpu {
    fn new(gpu: Gpu, config: AttentionConfig, limits: &Config) -> Result<Self> {
        let (blocks, size) = (limits.cache.num_blocks, limits.cache.block_size);
        let layout =
            KvLayout::hnd(config.kv_dtype, blocks, size, config.num_kv_heads, config.head_dim);
        let host_layout = KvLayout { num_blocks: limits.cache.num_host_blocks.max(1), ..layout };
        let bytes = |layout: &KvLayout| layout.k_extent().expect("it is small") * 2;
        let poison = vec![0xff; bytes(&layout)];
        let device = [gpu.upload(&poison), gpu.upload(&poison)];
        let pinned = || PinnedBuffer::new(&gpu.cuda, bytes(&host_layout));
        let host = [pinned()?, pinned()?];
        // SAFETY: both live as long as this, and each run waits for its work.
        let cache = |at: [u64; 2], layout| unsafe { DeviceCache::new(at[0], at[1], layout, None) };
        let on_device = cache([device[0].address(), device[1].address()], layout)?;
        let on_host = cache([host[0].device_address()?, host[1].device_address()?], host_layout)?;
        let steps = StepLimits {
            max_rows: limits.max_num_seqs.next_power_of_two(),
            max_tokens: limits.max_num_batched_tokens,
            max_blocks: limits.max_num_seqs * limits.max_model_len.div_ceil(size),
            max_kv_len: limits.max_model_len,
            max_mask_bytes: 0,
        };
        let attention = Attention::new(&gpu.cuda, config, steps)?;
        Ok(Self {
            step: StepBuffer::new(&gpu.cuda, steps, &[&attention])?,
            append: Append::new(&gpu.cuda, config.q_dtype, config.kv_dtype)?,
            mover: BlockMover::new(&gpu.cuda, &[on_device], &[on_host])?,
            attention,
            cache: on_device,
            layout,
            _device: device,
            _host: host,
            gpu,
        })
    }
}

impl Layer for OnGpu {
    fn name(&self) -> String {
        self.gpu.cuda.info().name.clone()
    }

    fn run(&mut self, batch: &RaggedBatch, qkv: [&[f32]; 3]) -> Result<Vec<f32>> {
        let stream = &self.gpu.stream;
        let (n, config) = (batch.tokens().len(), *self.attention.config());
        let bits = |x: &[f32]| -> Vec<f16> { x.iter().map(|&x| f16::from_f32(x)).collect() };
        let [q, k, v] = qkv.map(|x| self.gpu.upload(bytemuck::cast_slice(&bits(x))));
        let o = self.gpu.upload(&vec![0xff; 2 * qkv[0].len()]);
        let tensor = |of: &CudaBuffer, heads| {
            let shape = Shape::contiguous(n, heads, config.head_dim);
            // SAFETY: it lives until the stream is done, below.
            unsafe { DeviceTensor::new(of.address(), config.q_dtype, shape) }
        };
        self.mover.run(stream, batch.ops())?;
        self.attention.plan(BatchView::from(batch), self.layout.num_blocks, None)?;
        self.step.upload(stream, &StepArrays::from(batch), &[&self.attention])?;
        let new = |of| tensor(of, config.num_kv_heads);
        let args = AppendArgs { k: new(&k), v: new(&v), cache: self.cache, rope: None };
        // SAFETY: all memory lives until the stream is done.
        unsafe { self.append.run(stream, &self.step, &args) }?;
        let many = |of| tensor(of, config.num_q_heads);
        let args = AttentionArgs::new(many(&q), self.cache, many(&o));
        // SAFETY: as above.
        unsafe { self.attention.run(stream, &self.step, 0, &args) }?;
        let mut found = vec![f16::ZERO; qkv[0].len()];
        stream.read(bytemuck::cast_slice_mut(&mut found), &o, 0)?;
        assert_eq!(self.gpu.reports(), Vec::<String>::new());
        Ok(found.into_iter().map(f16::to_f32).collect())
    }
}
