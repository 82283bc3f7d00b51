//! The processor, as tests of every backend see it.

use inflight::batch::RaggedBatch;
use inflight::device::cpu::Cpu;
use inflight::kernels::cpu::{Append, Attention, AttentionArgs, StepBuffer, append, move_blocks};
use inflight::kernels::tensor::Shape;
use inflight::kernels::{
    AttentionConfig, BatchView, DType, KvCache, KvLayout, KvScales, StepLimits, TensorMut,
    TensorRef,
};
use inflight::{Config, Result};

use crate::attention::{Answer, Case, TokenLayout};
use crate::cpus;

pub(crate) const DIMS: &[usize] = &[8, 64, 72, 80, 96, 112, 128, 192, 256];
pub(crate) const GROUPS: &[usize] = &[1, 3, 4, 5, 7, 8, 16];
pub(crate) const TYPES: &[(DType, DType)] = &[
    (DType::F32, DType::F32),
    (DType::F16, DType::F16),
    (DType::Bf16, DType::Bf16),
    (DType::F32, DType::Fp8E4m3),
    (DType::F16, DType::Fp8E4m3),
    (DType::Bf16, DType::Fp8E4m3),
];
pub(crate) const TOKEN_LAYOUTS: &[TokenLayout] =
    &[TokenLayout::Contiguous, TokenLayout::Packed, TokenLayout::Odd, TokenLayout::HeadMajor];
/// Random cases, and the products of one, at most: the oracle's time.
pub(crate) const CASES: usize = 300;
pub(crate) const MOST_WORK: usize = 6_000_000;
/// Query heads a KV head of cases made by hand.
pub(crate) const BY_HAND: &[usize] = &[1];

pub(crate) fn is_there() -> bool {
    true
}

/// What each of the processors answers; turn by turn with another number of threads.
pub(crate) fn answers(case: &mut Case, turn: usize) -> Vec<(String, Answer)> {
    let name =
        |cpu: &inflight::device::cpu::Cpu| format!("{}, {} threads", cpu.isa(), cpu.threads());
    cpus::each(turn).map(|cpu| (name(cpu), case.answer(cpu))).collect()
}

/// Type and head dimension of a scheduler's steps.
pub(crate) const STEPS_TYPE: DType = DType::F32;
pub(crate) const STEPS_DIM: usize = 16;

/// A layer of a model, with its cache: block operations, append and attention of a step.
pub(crate) trait Layer {
    fn name(&self) -> String;

    /// Outputs of these new queries, keys and values, `[token, head, dim]` each.
    fn run(&mut self, batch: &RaggedBatch, qkv: [&[f32]; 3]) -> Result<Vec<f32>>;
}

pub(crate) type MakeLayer = Box<dyn Fn(AttentionConfig, &Config) -> Box<dyn Layer>>;

/// One on each of the processors.
pub(crate) fn layers(turn: usize) -> Vec<MakeLayer> {
    let make = |cpu: &'static Cpu| -> MakeLayer {
        Box::new(move |config, limits| Box::new(OnCpu::new(cpu, config, limits)))
    };
    cpus::each(turn).map(make).collect()
}

struct OnCpu {
    cpu: &'static Cpu,
    attention: Attention,
    step: StepBuffer,
    layout: KvLayout,
    device: [Vec<u128>; 2],
    host: [Vec<u128>; 2],
    host_layout: KvLayout,
}

impl OnCpu {
    fn new(cpu: &'static Cpu, config: AttentionConfig, limits: &Config) -> Self {
        let (blocks, size) = (limits.cache.num_blocks, limits.cache.block_size);
        let layout =
            KvLayout::nhd(config.kv_dtype, blocks, size, config.num_kv_heads, config.head_dim);
        let host_layout = KvLayout { num_blocks: limits.cache.num_host_blocks.max(1), ..layout };
        let memory = |layout: KvLayout| {
            let chunks = layout.k_extent().expect("it is small") / 4;
            [vec![u128::MAX; chunks], vec![u128::MAX; chunks]]
        };
        let attention = Attention::new(cpu, config, StepLimits::MAX).expect("it is sound");
        Self {
            cpu,
            step: StepBuffer::new(StepLimits::MAX, &[&attention]).expect("it is sound"),
            attention,
            layout,
            device: memory(layout),
            host: memory(host_layout),
            host_layout,
        }
    }
}

fn caches(memory: &mut [Vec<u128>; 2], layout: KvLayout) -> KvCache<'_> {
    let [k, v] = memory;
    KvCache::new(k, v, layout).expect("a sound layout")
}

impl Layer for OnCpu {
    fn name(&self) -> String {
        format!("{:?}", self.cpu)
    }

    fn run(&mut self, batch: &RaggedBatch, [q, k, v]: [&[f32]; 3]) -> Result<Vec<f32>> {
        if !batch.ops().is_empty() {
            let device = &mut [caches(&mut self.device, self.layout)];
            let host = &mut [caches(&mut self.host, self.host_layout)];
            move_blocks(self.cpu, batch.ops(), device, host)?;
        }
        let (n, config) = (batch.tokens().len(), *self.attention.config());
        let shape = |heads| Shape::contiguous(n, heads, config.head_dim);
        let (few, many) = (shape(config.num_kv_heads), shape(config.num_q_heads));
        let mut cache = caches(&mut self.device, self.layout);
        let (new_k, new_v) = (TensorRef::new(k, few)?, TensorRef::new(v, few)?);
        append(self.cpu, &mut cache, Append::new(new_k, new_v, batch.slot_mapping()))?;
        let mut o = vec![f32::NAN; q.len()];
        self.attention.plan(BatchView::from(batch), self.layout.num_blocks, None)?;
        self.step.upload(batch, &[&self.attention])?;
        let args = AttentionArgs {
            q: TensorRef::new(q, many)?,
            cache: &cache,
            scales: KvScales::NONE,
            o: TensorMut::new(&mut o, many)?,
            lse: None,
            alibi_slopes: None,
            sinks: None,
        };
        self.attention.run(&self.step, 0, args)?;
        Ok(o)
    }
}
