//! The two kernels of attention: rows with few queries, and others.

#![forbid(unsafe_code)]

use std::ffi::CString;

use super::params;
use super::shapes::{self, Block, DIMS};
use crate::device::cuda::{Kernel, Kernels, Launch};
use crate::error::{Error, Result};
use crate::kernels::{AttentionConfig, DType, StepLimits};
use crate::plan::{Costs, Plan, PlanBounds, PlanConfig};

/// One of the two kernels, and its part of a step.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) plain: Kernel,
    pub(super) general: Kernel,
    pub(super) launch: Launch,
    pub(super) config: PlanConfig,
    pub(super) plan: Plan,
    pub(super) bounds: PlanBounds,
}

/// The head dimension of the kernel for a configuration, whose other limits are checked too.
fn kernel_dim(config: &AttentionConfig) -> Result<usize> {
    let refused = |field, reason: String| Err(Error::argument(field, reason));
    if config.q_dtype == DType::F32 {
        return refused("q_dtype", "is f32: on GPUs it is f16 or bf16".into());
    }
    let group = config.group_size();
    if group > params::INFLIGHT_PREFILL_ROWS as usize {
        let most = params::INFLIGHT_PREFILL_ROWS;
        return refused("num_q_heads", format!("are {group} a KV head, and {most} are the most"));
    }
    let fits = DIMS.into_iter().find(|&dim| dim >= config.head_dim);
    match (config.head_dim, fits) {
        (64 | 80 | 96 | 112 | 128 | 192 | 256, Some(dim)) => Ok(dim),
        (dim, _) => {
            let dims = "64, 80, 96, 112, 128, 192 or 256";
            refused("head_dim", format!("{dim} has no kernel for GPUs: {dims} have"))
        }
    }
}

/// What distinguishes the kernels of a configuration.
#[derive(Clone, Copy)]
pub(super) struct Sides {
    config: AttentionConfig,
    dim: usize,
    /// Queries of a row that decode takes at most; 0 where it takes none.
    pub(super) few: u32,
}

/// One kernel's tiles.
struct Shape {
    family: &'static str,
    block: Block,
    /// Queries of a tile.
    q_tile: u32,
    /// Queries of rows that are split in batch-invariant mode, at most.
    split_q: u32,
    costs: Costs,
}

impl Sides {
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `config` that no kernel has.
    pub(super) fn new(config: &AttentionConfig) -> Result<Self> {
        let few = params::INFLIGHT_DECODE_ROWS / config.group_size() as u32;
        Ok(Self { config: *config, dim: kernel_dim(config)?, few })
    }

    /// The file of a family's kernel.
    pub(super) fn file(&self, family: &str) -> String {
        let q = self.config.q_dtype.name();
        let kv = if self.config.kv_dtype == DType::Fp8E4m3 { "e4m3" } else { "same" };
        format!("{family}_{q}_{kv}_d{}", self.dim)
    }

    /// A block that can be of either kind, where there is a kernel with such blocks, and rows of
    /// both kinds.
    pub(super) fn mixed(&self) -> Option<Block> {
        shapes::mixed(self.dim, self.config.kv_dtype).filter(|_| self.few > 0)
    }

    /// Rows with few queries.
    ///
    /// # Errors
    /// As [`Attention::new`](super::Attention::new).
    pub(super) fn decode(&self, kernels: &Kernels, limits: &StepLimits) -> Result<Side> {
        let config = &self.config;
        let key = (2 * config.head_dim * config.kv_dtype.size()) as u32;
        let shape = Shape {
            family: "decode",
            block: shapes::decode(self.dim, config.kv_dtype),
            q_tile: self.few.max(1),
            split_q: self.few,
            // Bytes that a multiprocessor reads in the microsecond that a part takes to start and
            // end.
            costs: Costs { tile: 32 << 10, key, query_key: 0 },
        };
        self.side(kernels, limits, &shape)
    }

    /// Other rows.
    ///
    /// # Errors
    /// As [`Attention::new`](super::Attention::new).
    pub(super) fn prefill(&self, kernels: &Kernels, limits: &StepLimits) -> Result<Side> {
        let config = &self.config;
        let group = config.group_size();
        let key = (config.head_dim * config.kv_dtype.size()) as u32;
        let products = config.head_dim as u32 * params::INFLIGHT_PREFILL_ROWS / 32;
        let shape = Shape {
            family: "prefill",
            block: shapes::prefill(self.dim, config.kv_dtype),
            q_tile: (params::INFLIGHT_PREFILL_ROWS / group as u32).max(1),
            // Single queries are here where decode has none.
            split_q: u32::from(self.few == 0),
            // In the same unit, by a multiprocessor's rate of products: d * 4 operations a query
            // row and key, of as many rows as a tile can have, whether it has them or not.
            costs: Costs { tile: 64 << 10, key: key + products, query_key: 0 },
        };
        self.side(kernels, limits, &shape)
    }

    fn side(&self, kernels: &Kernels, limits: &StepLimits, shape: &Shape) -> Result<Side> {
        let Shape { family, block: Block { threads, shared, keys }, q_tile, split_q, costs } =
            *shape;
        let config = &self.config;
        let file = self.file(family);
        let load = |suffix: &str| {
            let name = CString::new(format!("inflight_{file}{suffix}")).expect("no zero in it");
            kernels.prepare(&file, &name, shared)
        };
        let (plain, general) = (load("")?, load("_general")?);
        let cuda = kernels.cuda();
        let blocks = plain.blocks_per_multiprocessor(threads, shared)?;
        let blocks = blocks.min(general.blocks_per_multiprocessor(threads, shared)?).max(1);
        let shares = blocks * cuda.info().multiprocessors;
        let plan = PlanConfig {
            shares,
            heads: config.num_kv_heads as u32,
            joint_q: 0,
            q_tile,
            // Batch-invariant splits are at multiples of 128.
            kv_granularity: if config.fixed_split.is_some() { 128 } else { keys },
            causal: config.causal,
            window_left: config.window_left,
            fixed_split: config.fixed_split,
            split_q,
            costs,
        };
        let [rows, tokens, keys] =
            [limits.max_rows, limits.max_tokens, limits.max_kv_len].map(|n| n as u32);
        let bounds = plan.bounds(rows, tokens, keys);
        let launch = Launch::new(shares, threads, shared).dependent();
        Ok(Side { plain, general, launch, config: plan, plan: Plan::default(), bounds })
    }
}
