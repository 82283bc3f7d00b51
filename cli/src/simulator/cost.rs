//! How long one step takes on a named GPU with a named model, by a roofline.
//!
//! A replay without a GPU needs a clock. This one is arithmetic on data-sheet figures: a step costs
//!
//! ```text
//!   step_overhead + layers * layer_overhead + rows * row_overhead
//! + max(weights of the layers / bandwidth,        FLOPs of the layers / compute)
//! + max(KV read and written   / bandwidth,        FLOPs of attention  / compute)
//! + max(weights of the head   / bandwidth,        FLOPs of the head   / compute)
//! ```
//!
//! with bandwidth and compute at the fraction of their peak that good kernels reach. The three
//! parts are kernels that run one after another, so each has its own roofline and they add up.
//!
//! # How good it is
//! Overheads and efficiencies were fitted to public measurements of 16-bit LLaMA 7B and 13B on one
//! A100, which the model meets within 10 % (they are in the tests: 1 to 64 rows of up to 3072
//! tokens, prompts of 2048 tokens). It is too fast where a step is bound by neither memory nor
//! compute: around 100 to 300 tokens a roofline has a corner and a GPU has a curve. TensorRT-LLM
//! reports 16 ms for a prompt of 128 tokens where this says 10. Use it to compare policies on equal
//! terms, not to predict a machine.
//!
//! Not modelled: parallelism over several GPUs, quantised weights, swapping, host time beyond the
//! fixed overheads, speculative decoding.

/// One GPU: its data sheet, and which part of that a serving engine gets.
///
/// The figures of [`gpus`] are those of NVIDIA's data sheets for the SXM variants (A100: 312
/// TFLOP/s; H100 and H200: 989.4 TFLOP/s, dense, without sparsity). Gigabytes are decimal there;
/// devices report up to 6 % more, which is left to the driver and to fragmentation, and vLLM finds
/// room for as much more KV.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct GpuSpec {
    /// The name in [`gpu`].
    pub(crate) name: &'static str,
    /// Device memory, bytes.
    pub(crate) memory_bytes: u64,
    /// Fraction of the memory the engine may fill: 0.9, as is vLLM's default.
    pub(crate) memory_utilization: f64,
    /// Peak bandwidth of device memory, bytes per second.
    pub(crate) bandwidth: f64,
    /// Fraction of the bandwidth that reading weights and KV reaches. 0.85 (fitted): large
    /// matrix-vector products and paged attention get 80 to 90 % of the data sheet.
    pub(crate) mem_efficiency: f64,
    /// Peak of dense f16 and bf16 matrix products, FLOP/s.
    pub(crate) flops: f64,
    /// Fraction of that peak a whole prefill reaches, its element-wise kernels included. 0.68 on
    /// A100 (fitted). 0.55 on H100 and H200, which lower their clocks under such load: 500 to 620
    /// TFLOP/s are published for matrix products and attention.
    pub(crate) flop_efficiency: f64,
    /// Scheduling, launching, sampling and copying the tokens back, seconds per step.
    pub(crate) step_overhead_s: f64,
    /// Launch gaps and kernels too small to count in bytes or FLOPs, seconds per layer.
    pub(crate) layer_overhead_s: f64,
    /// Sampling and bookkeeping, seconds for each request in the step.
    pub(crate) row_overhead_s: f64,
}

const A100_40G: GpuSpec = GpuSpec {
    name: "a100-40g",
    memory_bytes: 40_000_000_000,
    memory_utilization: 0.9,
    bandwidth: 1555e9,
    mem_efficiency: 0.85,
    flops: 312e12,
    flop_efficiency: 0.68,
    step_overhead_s: 1.5e-3,
    layer_overhead_s: 25e-6,
    row_overhead_s: 10e-6,
};

const H100: GpuSpec = GpuSpec {
    name: "h100",
    memory_bytes: 80_000_000_000,
    bandwidth: 3350e9,
    flops: 989.4e12,
    flop_efficiency: 0.55,
    ..A100_40G
};

static GPUS: [GpuSpec; 4] = [
    A100_40G,
    GpuSpec { name: "a100-80g", memory_bytes: 80_000_000_000, bandwidth: 2039e9, ..A100_40G },
    H100,
    GpuSpec { name: "h200", memory_bytes: 141_000_000_000, bandwidth: 4800e9, ..H100 },
];

/// Every GPU known here.
pub(crate) fn gpus() -> &'static [GpuSpec] {
    &GPUS
}

/// The GPU called `name`, as in [`gpus`].
pub(crate) fn gpu(name: &str) -> Option<&'static GpuSpec> {
    GPUS.iter().find(|gpu| gpu.name == name)
}

/// The shape of a decoder-only transformer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ModelSpec {
    /// The name in [`model`].
    pub(crate) name: &'static str,
    /// Transformer layers.
    pub(crate) layers: u64,
    /// Width of the residual stream.
    pub(crate) hidden: u64,
    /// Query heads.
    pub(crate) heads: u64,
    /// Key and value heads.
    pub(crate) kv_heads: u64,
    /// Width of a head.
    pub(crate) head_dim: u64,
    /// Width inside the feed-forward block.
    pub(crate) intermediate: u64,
    /// Matrices of the feed-forward block: 3 where it is gated, else 2.
    pub(crate) mlp_matrices: u64,
    /// Tokens in the vocabulary.
    pub(crate) vocab: u64,
    /// The embedding also serves as the output matrix.
    pub(crate) tied_embeddings: bool,
    /// Bytes of a weight and of an element of the KV cache.
    pub(crate) dtype_bytes: u64,
}

const LLAMA_7B: ModelSpec = ModelSpec {
    name: "llama-7b",
    layers: 32,
    hidden: 4096,
    heads: 32,
    kv_heads: 32,
    head_dim: 128,
    intermediate: 11008,
    mlp_matrices: 3,
    vocab: 32000,
    tied_embeddings: false,
    dtype_bytes: 2,
};

const LLAMA_13B: ModelSpec = ModelSpec {
    name: "llama-13b",
    layers: 40,
    hidden: 5120,
    heads: 40,
    kv_heads: 40,
    intermediate: 13824,
    ..LLAMA_7B
};

const MISTRAL_7B: ModelSpec =
    ModelSpec { name: "mistral-7b", kv_heads: 8, intermediate: 14336, ..LLAMA_7B };

static MODELS: [ModelSpec; 6] = [
    LLAMA_7B,
    LLAMA_13B,
    MISTRAL_7B,
    ModelSpec { name: "llama-3-8b", vocab: 128256, ..MISTRAL_7B },
    ModelSpec {
        name: "llama-3-70b",
        layers: 80,
        hidden: 8192,
        heads: 64,
        kv_heads: 8,
        intermediate: 28672,
        vocab: 128256,
        ..LLAMA_7B
    },
    ModelSpec {
        name: "opt-13b",
        intermediate: 20480,
        mlp_matrices: 2,
        vocab: 50272,
        tied_embeddings: true,
        ..LLAMA_13B
    },
];

/// Every model known here, in 16 bits.
pub(crate) fn models() -> &'static [ModelSpec] {
    &MODELS
}

/// The model called `name`, as in [`models`].
pub(crate) fn model(name: &str) -> Option<&'static ModelSpec> {
    MODELS.iter().find(|model| model.name == name)
}

/// Tokens of the largest step for which activations are kept free, vLLM's usual token budget.
const RESERVED_TOKENS: u64 = 2048;
/// Rows of that step that are sampled: vLLM's usual limit of running requests.
const RESERVED_LOGITS_ROWS: u64 = 256;

impl ModelSpec {
    /// Parameters of the linear layers, embedding and head not included.
    fn linear_parameters(&self) -> u64 {
        let query_and_output = 2 * self.hidden * self.heads * self.head_dim;
        let key_and_value = 2 * self.hidden * self.kv_heads * self.head_dim;
        let mlp = self.mlp_matrices * self.hidden * self.intermediate;
        self.layers * (query_and_output + key_and_value + mlp)
    }

    /// All parameters: linear layers, norms, embedding and head. Biases and learned positions are
    /// left out (OPT has them: 0.1 % of it).
    pub(crate) fn parameters(&self) -> u64 {
        let embeddings = if self.tied_embeddings { 1 } else { 2 } * self.vocab * self.hidden;
        let norms = (2 * self.layers + 1) * self.hidden;
        self.linear_parameters() + embeddings + norms
    }

    /// Bytes of all weights.
    pub(crate) fn weights_bytes(&self) -> u64 {
        self.parameters() * self.dtype_bytes
    }

    /// Bytes that one token takes in the KV cache, all layers together.
    pub(crate) fn kv_bytes_per_token(&self) -> u64 {
        2 * self.layers * self.kv_heads * self.head_dim * self.dtype_bytes
    }

    /// FLOPs of the linear layers for one token. The head is not included: most tokens of a prompt
    /// need no logits.
    pub(crate) fn flops_per_token(&self) -> u64 {
        2 * self.linear_parameters()
    }

    /// FLOPs of attention for one query token and one key token, all layers and heads together.
    pub(crate) fn flops_per_attention_pair(&self) -> u64 {
        4 * self.layers * self.heads * self.head_dim
    }

    /// Bytes of activations to keep free for a step of 2048 tokens of which 256 are sampled: at
    /// the feed-forward block, its input, output and inner values; then logits and probabilities
    /// in f32.
    pub(crate) fn activation_bytes(&self) -> u64 {
        let per_token =
            (2 * self.hidden + self.mlp_matrices * self.intermediate) * self.dtype_bytes;
        let per_logits_row = 2 * self.vocab * 4;
        RESERVED_TOKENS * per_token + RESERVED_LOGITS_ROWS * per_logits_row
    }
}

/// What one step computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StepWork {
    /// Requests in the step.
    pub(crate) rows: u64,
    /// Tokens that go through the layers, padding included. 0 is a step that does nothing.
    pub(crate) tokens: u64,
    /// Tokens whose logits are needed.
    pub(crate) logits_rows: u64,
    /// Tokens of KV read: the sum over the rows of their KV length.
    pub(crate) kv_read_tokens: u64,
    /// Pairs of a query and a key it sees: the sum over the rows, causal.
    pub(crate) attn_pairs: u64,
}

/// The time of steps, and the room for KV, of one model on one GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct CostModel {
    /// The GPU.
    pub(crate) gpu: GpuSpec,
    /// The model, all of it on that GPU.
    pub(crate) model: ModelSpec,
}

impl CostModel {
    /// The cost of `model` on `gpu`; either may be a changed copy of a named one.
    pub(crate) fn new(gpu: &GpuSpec, model: &ModelSpec) -> Self {
        Self { gpu: *gpu, model: *model }
    }

    /// The time of one step, in seconds. More work never takes less time.
    pub(crate) fn step_seconds(&self, work: &StepWork) -> f64 {
        if work.tokens == 0 {
            return 0.0;
        }
        let model = &self.model;
        let dtype = model.dtype_bytes as f64;
        let [tokens, logits_rows] = [work.tokens, work.logits_rows].map(|n| n as f64);

        let overhead = self.gpu.step_overhead_s
            + self.gpu.layer_overhead_s * model.layers as f64
            + self.gpu.row_overhead_s * work.rows as f64;
        let linear = self.roofline(
            model.linear_parameters() as f64 * dtype,
            model.flops_per_token() as f64 * tokens,
        );
        let attention = self.roofline(
            model.kv_bytes_per_token() as f64 * (work.kv_read_tokens as f64 + tokens),
            model.flops_per_attention_pair() as f64 * work.attn_pairs as f64,
        );
        let head = if work.logits_rows == 0 {
            0.0
        } else {
            let parameters = (model.vocab * model.hidden) as f64;
            self.roofline(parameters * dtype, 2.0 * parameters * logits_rows)
        };
        overhead + linear + attention + head
    }

    /// Seconds that a kernel takes which moves `bytes` and computes `flops`.
    fn roofline(&self, bytes: f64, flops: f64) -> f64 {
        let gpu = &self.gpu;
        let memory = bytes / (gpu.bandwidth * gpu.mem_efficiency);
        let compute = flops / (gpu.flops * gpu.flop_efficiency);
        memory.max(compute)
    }

    /// Tokens of KV for which there is room next to weights and activations; 0 where the model does
    /// not fit.
    pub(crate) fn kv_capacity_tokens(&self) -> u64 {
        let usable = (self.gpu.memory_bytes as f64 * self.gpu.memory_utilization) as u64;
        let taken = self.model.weights_bytes() + self.model.activation_bytes();
        usable.saturating_sub(taken) / self.model.kv_bytes_per_token()
    }

    /// Blocks of `block_size` tokens for which there is room; 0 where the model does not fit.
    pub(crate) fn num_blocks(&self, block_size: usize) -> usize {
        let tokens = usize::try_from(self.kv_capacity_tokens()).unwrap_or(usize::MAX);
        tokens.checked_div(block_size).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(gpu_name: &str, model_name: &str) -> CostModel {
        CostModel::new(gpu(gpu_name).expect(gpu_name), model(model_name).expect(model_name))
    }

    /// One token for each of `rows` requests, `context` tokens long with it.
    fn decode(rows: u64, context: u64) -> StepWork {
        StepWork {
            rows,
            tokens: rows,
            logits_rows: rows,
            kv_read_tokens: rows * context,
            attn_pairs: rows * context,
        }
    }

    /// A whole prompt.
    fn prefill(tokens: u64) -> StepWork {
        StepWork {
            rows: 1,
            tokens,
            logits_rows: 1,
            kv_read_tokens: tokens,
            attn_pairs: tokens * (tokens + 1) / 2,
        }
    }

    #[test]
    fn names_are_found() {
        for gpu_spec in gpus() {
            assert_eq!(gpu(gpu_spec.name), Some(gpu_spec));
        }
        for model_spec in models() {
            assert_eq!(model(model_spec.name), Some(model_spec));
        }
        assert_eq!((gpu("tpu"), model("gpt-5")), (None, None));
    }

    /// Parameters as counted in the published checkpoints.
    #[test]
    fn parameters_are_those_of_the_checkpoints() {
        for (name, published) in [
            ("llama-7b", 6_738_415_616),
            ("llama-13b", 13_015_864_320),
            ("mistral-7b", 7_241_732_096),
            ("llama-3-8b", 8_030_261_248),
            ("llama-3-70b", 70_553_706_496),
        ] {
            assert_eq!(model(name).map(ModelSpec::parameters), Some(published), "{name}");
        }
        let opt = model("opt-13b").expect("opt-13b").parameters() as f64;
        assert!((opt / 12_853_473_280.0 - 1.0).abs() < 1.5e-3, "{opt}");
    }

    #[test]
    fn kv_bytes_of_known_models() {
        let kv = |name| model(name).map(ModelSpec::kv_bytes_per_token);
        // 800 KiB per token of a 13B model is the figure of the vLLM paper.
        assert_eq!(kv("llama-13b"), Some(800 << 10));
        assert_eq!(kv("opt-13b"), Some(800 << 10));
        assert_eq!(kv("llama-3-8b"), Some(128 << 10));
    }

    #[test]
    fn capacity() {
        let tokens = |gpu, model| cost(gpu, model).kv_capacity_tokens() as f64;
        let within = |found: f64, expected: f64, tolerance: f64| {
            assert!((found / expected - 1.0).abs() < tolerance, "{found} for {expected}");
        };
        within(tokens("a100-40g", "llama-13b"), 12_000.0, 0.05);
        // vLLM's own log with LLaMA-2 7B on an A100 (in the README of FlightLLM's artifact).
        within(tokens("a100-80g", "llama-7b"), 7449.0 * 16.0, 0.1);
        for gpu in ["a100-40g", "a100-80g", "h100"] {
            assert_eq!(tokens(gpu, "llama-3-70b"), 0.0);
            assert_eq!(cost(gpu, "llama-3-70b").num_blocks(16), 0);
        }
        let small = cost("a100-40g", "llama-13b");
        assert_eq!(small.num_blocks(16) as u64, small.kv_capacity_tokens() / 16);
        assert_eq!(small.num_blocks(0), 0);
    }

    #[test]
    fn one_row_is_bound_by_reading_the_weights() {
        let cost = cost("a100-40g", "llama-13b");
        let reading = cost.model.weights_bytes() as f64 / cost.gpu.bandwidth;
        let step = cost.step_seconds(&decode(1, 512));
        assert!(step > reading && step < 1.4 * reading, "{step} {reading}");
        assert!((0.017..0.0225).contains(&step), "{step}");
    }

    #[test]
    fn a_long_prompt_is_bound_by_compute() {
        let cost = cost("a100-40g", "llama-13b");
        let work = prefill(2048);
        let mut fast_memory = cost;
        fast_memory.gpu.bandwidth *= 2.0;
        let (step, relieved) = (cost.step_seconds(&work), fast_memory.step_seconds(&work));
        assert!(relieved > 0.99 * step, "{relieved} {step}");
        let mut fast_compute = cost;
        fast_compute.gpu.flops *= 2.0;
        assert!(fast_compute.step_seconds(&work) < 0.52 * step);
    }

    /// LMDeploy 0.1.0 (docs/en/benchmark/a100_fp16.md, one A100 of 80 GB: median time of a token
    /// at the mean context of its run, time to the first token), TensorRT-LLM 0.5
    /// (docs/source/performance.md: time to the first token), gpt-fast (README: 104.9 tokens/s) and
    /// vLLM (its benchmark of llama-3.1 8B on H200, build 9515: 833 ms for 128 steps).
    /// LLaMA-2 7B and 13B have the shapes of LLaMA-1.
    #[test]
    fn public_measurements_are_met() {
        let a100 = |model| cost("a100-80g", model);
        for (cost, work, measured_ms) in [
            (a100("llama-7b"), decode(1, 64), 10.0),
            (a100("llama-7b"), decode(1, 100), 1000.0 / 104.9),
            (a100("llama-7b"), decode(64, 64), 12.0),
            (a100("llama-7b"), decode(64, 192), 14.0),
            (a100("llama-7b"), decode(16, 3072), 25.0),
            (a100("llama-7b"), decode(32, 3072), 40.0),
            (a100("llama-7b"), prefill(2048), 139.0),
            (a100("llama-7b"), prefill(2048), 133.0),
            (a100("llama-13b"), decode(1, 64), 17.4),
            (a100("llama-13b"), decode(16, 192), 19.0),
            (a100("llama-13b"), decode(32, 192), 21.0),
            (a100("llama-13b"), decode(64, 192), 24.0),
            (a100("llama-13b"), decode(16, 2112), 33.0),
            (a100("llama-13b"), decode(16, 3072), 40.0),
            (a100("llama-13b"), prefill(2048), 242.0),
            (cost("h200", "llama-3-8b"), decode(8, 96), 833.0 / 128.0),
        ] {
            let ms = cost.step_seconds(&work) * 1e3;
            let error = ms / measured_ms - 1.0;
            let (gpu, model) = (cost.gpu.name, cost.model.name);
            println!("{gpu} {model} {work:?}: {ms:.1} ms, measured {measured_ms:.1}: {error:+.3}");
            assert!(error.abs() < 0.1, "{gpu} {model} {work:?}: {ms} for {measured_ms}");
        }
    }

    #[test]
    fn more_work_takes_no_less_time() {
        let grow: [fn(&mut StepWork, u64); 5] = [
            |work, n| work.rows += n,
            |work, n| work.tokens += n,
            |work, n| work.logits_rows += n,
            |work, n| work.kv_read_tokens += n,
            |work, n| work.attn_pairs += n,
        ];
        for (gpu_spec, model_spec) in
            gpus().iter().flat_map(|g| models().iter().map(move |m| (g, m)))
        {
            let cost = CostModel::new(gpu_spec, model_spec);
            for start in
                [StepWork::default(), decode(1, 1), decode(64, 500), prefill(300), prefill(4096)]
            {
                for grow in grow {
                    let mut work = start;
                    let mut before = cost.step_seconds(&work);
                    for power in 0..30 {
                        grow(&mut work, 1 << power);
                        let after = cost.step_seconds(&work);
                        assert!(after.is_finite() && after >= before, "{work:?}");
                        before = after;
                    }
                }
            }
        }
    }

    #[test]
    fn a_step_without_tokens_takes_no_time() {
        assert_eq!(cost("h100", "mistral-7b").step_seconds(&StepWork::default()), 0.0);
    }
}
