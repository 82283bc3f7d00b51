//! One layer of a model on either device, with everything that an operation takes.

use std::ffi::c_void;
use std::ptr;

use super::super::super::append::*;
use super::super::super::attention::*;
use super::super::super::attention_run::*;
use super::super::super::dlpack;
use super::super::super::ffi::Versioned;
use super::super::super::kv::*;
use super::super::super::rope::*;
use super::super::super::status::{inflight_error, inflight_status};
use super::super::super::step_buffer::*;
use super::super::super::tensor::*;
use super::super::{at, done};
use super::data::*;
use super::{Memory, On};

pub(super) const HEADS: usize = 2;
/// Tokens of all tensors: the most that a step has.
pub(super) const TOKENS: usize = 48;
const POSITIONS: usize = 1024;

/// How K and V lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Nhd,
    Hnd,
    /// `[blocks, 2, tokens, heads, dim]`.
    Interleaved,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    pub(super) q_dtype: u32,
    pub(super) kv_dtype: u32,
    /// Of an fp8 cache.
    pub(super) num_scales: u32,
    pub(super) q_heads: u32,
    pub(super) dim: usize,
    pub(super) order: Order,
    /// `INFLIGHT_ROPE_PAIRS_*`, or 0 for no rotation.
    pub(super) rope: u32,
    /// Whether there is a mask, and slopes and sinks.
    pub(super) general: bool,
    /// Whether tensors and cache come by DLPack.
    pub(super) dlpack: bool,
}

pub(super) const PLAIN: Spec = Spec {
    q_dtype: INFLIGHT_DTYPE_F16,
    kv_dtype: INFLIGHT_DTYPE_F16,
    num_scales: 0,
    q_heads: 4,
    dim: 64,
    order: Order::Nhd,
    rope: 0,
    general: false,
    dlpack: false,
};

pub(super) fn config(spec: &Spec) -> inflight_attention_config {
    inflight_attention_config {
        num_q_heads: spec.q_heads,
        num_kv_heads: HEADS as u32,
        head_dim: spec.dim as u32,
        q_dtype: spec.q_dtype,
        kv_dtype: spec.kv_dtype,
        ..inflight_attention_config::initial()
    }
}

pub(super) fn limits() -> inflight_step_limits {
    inflight_step_limits {
        max_rows: 8,
        max_tokens: TOKENS as u32,
        max_blocks: BLOCKS as u32,
        max_kv_len: POSITIONS as u32,
        max_mask_bytes: 512,
        ..inflight_step_limits::initial()
    }
}

/// What a step leaves behind.
pub(super) struct Answer {
    pub(super) kv: Vec<u8>,
    pub(super) q: Vec<u8>,
    pub(super) o: Vec<u8>,
    pub(super) lse: Vec<u8>,
}

pub(super) struct Model<'a> {
    pub(super) on: &'a On,
    pub(super) spec: Spec,
    pub(super) attention: *mut inflight_attention,
    pub(super) step: *mut inflight_step_buffer,
    kv: Memory,
    scales: Memory,
    new_k: Memory,
    new_v: Memory,
    q: Memory,
    o: Memory,
    lse: Memory,
    table: Memory,
    per_head: Memory,
    pub(super) cache: Box<inflight_kv_cache>,
    queries: Box<inflight_tensor>,
}

impl<'a> Model<'a> {
    pub(super) fn new(on: &'a On, spec: Spec) -> Self {
        Self::with(on, spec, config(&spec))
    }

    pub(super) fn with(on: &'a On, spec: Spec, config: inflight_attention_config) -> Self {
        let limits = limits();
        let (mut attention, mut step) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: all pointers are of this function.
        done(|e| unsafe {
            let (config, limits) = (&raw const config, &raw const limits);
            inflight_attention_create(on.device, config, limits, &raw mut attention, e)
        });
        // SAFETY: all pointers are of this function.
        done(|e| unsafe {
            let (limits, all) = (&raw const limits, &raw const attention);
            inflight_step_buffer_create(on.device, limits, all, 1, &raw mut step, e)
        });
        let Spec { q_dtype, kv_dtype, q_heads, dim, .. } = spec;
        let of = |dtype, len, seed| on.memory(&random(dtype, len, seed));
        let (new, queries) = (TOKENS * HEADS * dim, TOKENS * q_heads as usize * dim);
        // K's then V's; and slopes then sinks.
        let scales = encode(INFLIGHT_DTYPE_F32, &[0.5, 0.75, 1.25, 0.3]);
        let q = on.memory(&random(q_dtype, queries, 5));
        let mut rotation = vec![0.0_f32; POSITIONS * dim];
        let rope =
            inflight_rope_config { rotary_dim: dim as u32, ..inflight_rope_config::initial() };
        // SAFETY: the table is as long as that.
        done(|e| unsafe {
            let (table, len) = (rotation.as_mut_ptr(), rotation.len());
            inflight_rope_table(&raw const rope, POSITIONS as u32, table, len, e)
        });
        let mut model = Self {
            on,
            spec,
            attention,
            step,
            kv: of(kv_dtype, 2 * BLOCKS * SIZE * HEADS * dim, 1),
            scales: on.memory(&scales),
            new_k: of(q_dtype, new, 3),
            new_v: of(q_dtype, new, 4),
            o: on.memory(&vec![0xff; queries * size_of_type(q_dtype)]),
            lse: on.memory(&vec![0xff; TOKENS * q_heads as usize * 4]),
            table: on.memory(&encode(INFLIGHT_DTYPE_F32, &rotation)),
            per_head: of(INFLIGHT_DTYPE_F32, 2 * q_heads as usize, 6),
            cache: Box::new(inflight_kv_cache::initial()),
            queries: Box::new(inflight_tensor::initial()),
            q,
        };
        *model.cache = model.view();
        *model.queries = model.tensor(&model.q, spec.q_heads);
        model
    }

    /// Other new keys, values and queries; outputs are forgotten.
    pub(super) fn inputs(&self, seed: u64) {
        let Spec { q_dtype, q_heads, dim, .. } = self.spec;
        let (new, queries) = (TOKENS * HEADS * dim, TOKENS * q_heads as usize * dim);
        self.on.write(&self.new_k, &random(q_dtype, new, 10 * seed + 1));
        self.on.write(&self.new_v, &random(q_dtype, new, 10 * seed + 2));
        self.on.write(&self.q, &random(q_dtype, queries, 10 * seed + 3));
        self.on.write(&self.o, &vec![0xff; queries * size_of_type(q_dtype)]);
        self.on.write(&self.lse, &vec![0xff; TOKENS * q_heads as usize * 4]);
    }

    /// The cache, by strides or by DLPack.
    fn view(&self) -> inflight_kv_cache {
        let Spec { kv_dtype, dim, order, num_scales, .. } = self.spec;
        let (start, half) = (self.kv.ptr(), BLOCKS * SIZE * HEADS * dim);
        let behind = |elements: usize| start.wrapping_byte_add(elements * size_of_type(kv_dtype));
        let apart = if order == Order::Interleaved { SIZE * HEADS * dim } else { half };
        let layout = if order == Order::Hnd { INFLIGHT_LAYOUT_HND } else { INFLIGHT_LAYOUT_NHD };
        let mut cache = inflight_kv_cache::initial();
        if self.spec.dlpack {
            let (a, b) = if order == Order::Hnd { (HEADS, SIZE) } else { (SIZE, HEADS) };
            let block = SIZE * HEADS * dim * if order == Order::Interleaved { 2 } else { 1 };
            let shape = [BLOCKS, a, b, dim];
            let strides = [block, b * dim, dim, 1];
            let mut k = Exporter::new(self.on, start, kv_dtype, &shape, &strides);
            let mut v = Exporter::new(self.on, behind(apart), kv_dtype, &shape, &strides);
            let (k, v, cache) = (k.managed(), v.managed(), &raw mut cache);
            let (device, kind) = (self.on.device, dlpack::INFLIGHT_DLPACK_VERSIONED);
            // SAFETY: all is of this function.
            done(|e| unsafe {
                dlpack::inflight_kv_cache_from_dlpack(device, k, v, kind, layout, cache, e)
            });
        } else {
            cache =
                contiguous(layout, kv_dtype, [start, behind(apart)], [BLOCKS, SIZE, HEADS, dim]);
            if order == Order::Interleaved {
                cache.k.block_stride *= 2;
                cache.v.block_stride *= 2;
            }
        }
        if num_scales > 0 {
            let scales: *const f32 = self.scales.ptr().cast();
            cache.k.scales = scales.cast();
            cache.v.scales = scales.wrapping_add(2).cast();
            let each = i64::from(num_scales > 1);
            (cache.k.scale_head_stride, cache.v.scale_head_stride) = (each, each);
        }
        cache
    }

    /// A tensor of the queries' type, by strides or by DLPack.
    fn tensor(&self, memory: &Memory, heads: u32) -> inflight_tensor {
        let Spec { q_dtype: dtype, dim, .. } = self.spec;
        let mut tensor = inflight_tensor::initial();
        if self.spec.dlpack {
            let shape = [TOKENS, heads as usize, dim];
            let strides = [heads as usize * dim, dim, 1];
            let mut exporter = Exporter::new(self.on, memory.ptr(), dtype, &shape, &strides);
            let (from, tensor) = (exporter.managed(), &raw mut tensor);
            let kind = dlpack::INFLIGHT_DLPACK_VERSIONED;
            // SAFETY: all is of this function.
            done(|e| unsafe {
                dlpack::inflight_tensor_from_dlpack(self.on.device, from, kind, 1, tensor, e)
            });
        } else {
            // SAFETY: the tensor is of this function.
            done(|e| unsafe {
                let (tensor, data, dim) = (&raw mut tensor, memory.ptr(), dim as u32);
                inflight_tensor_set_contiguous(tensor, dtype, data, TOKENS as u64, heads, dim, e)
            });
        }
        tensor
    }

    pub(super) fn rope(&self) -> inflight_rope {
        inflight_rope {
            cos_sin: self.table.ptr().cast(),
            q: &raw const *self.queries,
            max_position: POSITIONS as u32,
            rotary_dim: self.spec.dim as u32,
            pairs: self.spec.rope,
            ..inflight_rope::initial()
        }
    }

    /// New keys and values for the cache; the rotation, if there is one, is the caller's to keep.
    pub(super) fn append_args(&self, rope: &inflight_rope) -> inflight_append_args {
        inflight_append_args {
            k: at(self.tensor(&self.new_k, HEADS as u32)),
            v: at(self.tensor(&self.new_v, HEADS as u32)),
            cache: &raw const *self.cache,
            rope: if self.spec.rope == 0 { ptr::null() } else { rope },
            ..inflight_append_args::initial()
        }
    }

    pub(super) fn run_args(&self) -> inflight_attention_args {
        let per_head: *const f32 = self.per_head.ptr().cast();
        let general = |numbers| if self.spec.general { numbers } else { ptr::null() };
        inflight_attention_args {
            q: &raw const *self.queries,
            o: at(self.tensor(&self.o, self.spec.q_heads)),
            cache: &raw const *self.cache,
            lse: self.lse.ptr().cast(),
            alibi_slopes: general(per_head),
            sinks: general(per_head.wrapping_add(self.spec.q_heads as usize)),
            ..inflight_attention_args::initial()
        }
    }

    pub(super) fn plan(&self, rows: &Rows) {
        let (batch, mask) = (rows.batch(), rows.mask());
        let mask = if self.spec.general { &raw const mask } else { ptr::null() };
        // SAFETY: arrays are as long as their structs say.
        done(|e| unsafe {
            inflight_attention_plan(self.attention, &raw const batch, BLOCKS as u64, mask, e)
        });
    }

    pub(super) fn upload(&self, rows: &Rows, stream: *mut c_void) {
        let batch = rows.batch();
        // SAFETY: as above, and the stream lives.
        done(|e| unsafe { inflight_step_buffer_upload(self.step, &raw const batch, stream, e) });
    }

    pub(super) fn append(
        &self,
        stream: *mut c_void,
        error: *mut inflight_error,
    ) -> inflight_status {
        let rope = self.rope();
        let args = self.append_args(&rope);
        // SAFETY: all memory is this model's.
        unsafe { inflight_append(self.step, &raw const args, stream, error) }
    }

    pub(super) fn run(&self, stream: *mut c_void, error: *mut inflight_error) -> inflight_status {
        let args = self.run_args();
        // SAFETY: all memory is this model's.
        unsafe { inflight_attention_run(self.attention, self.step, &raw const args, stream, error) }
    }

    /// A whole step on the device's stream.
    pub(super) fn compute(&self, rows: &Rows) -> Answer {
        let stream = self.on.stream();
        self.plan(rows);
        self.upload(rows, stream);
        done(|e| self.append(stream, e));
        done(|e| self.run(stream, e));
        self.answer()
    }

    pub(super) fn answer(&self) -> Answer {
        let read = |memory| self.on.read(memory);
        Answer { kv: read(&self.kv), q: read(&self.q), o: read(&self.o), lse: read(&self.lse) }
    }

    /// Compares what a processor and a GPU left: bytes of the cache and of queries, numbers of the
    /// outputs, and that nothing was written for tokens beyond the step's.
    #[track_caller]
    pub(super) fn compare(&self, rows: &Rows, cpu: &Answer, gpu: &Answer) {
        let Spec { q_dtype, q_heads, dim, .. } = self.spec;
        assert!(cpu.kv == gpu.kv, "the caches differ");
        assert!(cpu.q == gpu.q, "the queries differ");
        let tolerance = if q_dtype == INFLIGHT_DTYPE_F16 { 2e-3 } else { 1.6e-2 };
        let heads = rows.tokens() * q_heads as usize;
        close(q_dtype, &cpu.o, &gpu.o, heads * dim, tolerance);
        close(INFLIGHT_DTYPE_F32, &cpu.lse, &gpu.lse, heads, 2e-3);
    }
}

impl Drop for Model<'_> {
    fn drop(&mut self) {
        // SAFETY: it is not used any more.
        unsafe { inflight_attention_free(self.attention) };
        // SAFETY: as above.
        unsafe { inflight_step_buffer_free(self.step) };
    }
}

/// A cache of so many blocks, tokens, heads and elements.
pub(super) fn contiguous(
    layout: u32,
    dtype: u32,
    [k, v]: [*mut c_void; 2],
    shape: [usize; 4],
) -> inflight_kv_cache {
    let mut cache = inflight_kv_cache::initial();
    let [blocks, size, heads, dim] = shape.map(|n| n as u32);
    // SAFETY: the cache is of this function.
    done(|e| unsafe {
        let (cache, blocks) = (&raw mut cache, blocks.into());
        inflight_kv_cache_set_contiguous(cache, layout, dtype, k, v, blocks, size, heads, dim, e)
    });
    cache
}
