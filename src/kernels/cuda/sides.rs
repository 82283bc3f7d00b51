//! The two kernels of attention: rows with few queries, and others.

#![forbid(unsafe_code)]

use std::ffi::CString;

use super::shapes::{self, Row};
use crate::device::cuda::{CudaDeviceInfo, Kernel, Kernels, Launch};
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

/// What distinguishes the kernels of a configuration.
#[derive(Clone, Copy)]
pub(super) struct Sides {
    pub(super) config: AttentionConfig,
    decode: &'static Row,
    prefill: &'static Row,
    mixed: Option<&'static Row>,
    /// Queries of a row that decode takes at most; 0 where it takes none.
    pub(super) few: u32,
}

/// One kernel's tiles.
struct Shape {
    row: &'static Row,
    /// Queries of a tile.
    q_tile: u32,
    /// Queries of rows that are split in batch-invariant mode, at most.
    split_q: u32,
    costs: Costs,
}

impl Sides {
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `config` that no kernel has.
    pub(super) fn new(config: &AttentionConfig, device: &CudaDeviceInfo) -> Result<Self> {
        if config.q_dtype == DType::F32 {
            return Err(Error::argument("q_dtype", "is f32: on GPUs it is f16 or bf16"));
        }
        let no_kernel = || {
            let (dim, dims) = (config.head_dim, shapes::head_dims_in_words());
            Error::argument("head_dim", format!("{dim} has no GPU kernel: {dims} have one"))
        };
        let dim = shapes::kernel_dim(config.head_dim);
        let row = |family| Row::find(family, config.kv_dtype, dim?, device);
        let (decode, prefill) = (row("decode"), row("prefill"));
        let (decode, prefill) = decode.zip(prefill).ok_or_else(no_kernel)?;
        let (group, most) = (config.group_size() as u32, prefill.rows);
        if group > most {
            let reason = format!("are {group} per KV head: at most {most} are supported");
            return Err(Error::argument("num_q_heads", reason));
        }
        let few = decode.rows / group;
        // A kernel for rows of both kinds, where there are any of decode's.
        let mixed = row("mixed").filter(|_| few > 0);
        Ok(Self { config: *config, decode, prefill, mixed, few })
    }

    /// The block that can be of either kind, and the file of its kernel.
    pub(super) fn mixed(&self) -> Option<(&'static Row, String)> {
        self.mixed.map(|row| (row, row.file(self.config.q_dtype)))
    }

    /// Rows with few queries.
    ///
    /// # Errors
    /// As [`Attention::new`](super::Attention::new).
    pub(super) fn decode(&self, kernels: &Kernels, limits: &StepLimits) -> Result<Side> {
        let config = &self.config;
        let key = (2 * config.head_dim * config.kv_dtype.size()) as u32;
        let shape = Shape {
            row: self.decode,
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
        let products = config.head_dim as u32 * self.prefill.rows / 32;
        let shape = Shape {
            row: self.prefill,
            q_tile: (self.prefill.rows / group as u32).max(1),
            // Single queries are here where decode has none.
            split_q: u32::from(self.few == 0),
            // In the same unit, by a multiprocessor's rate of products: d * 4 operations per query
            // row and key, of as many rows as a tile can have, whether it has them or not.
            costs: Costs { tile: 64 << 10, key: key + products, query_key: 0 },
        };
        self.side(kernels, limits, &shape)
    }

    fn side(&self, kernels: &Kernels, limits: &StepLimits, shape: &Shape) -> Result<Side> {
        let Shape { row, q_tile, split_q, costs } = *shape;
        let Row { threads, shared, keys, .. } = *row;
        let config = &self.config;
        let file = row.file(config.q_dtype);
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
            max_packed_q: 0,
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
