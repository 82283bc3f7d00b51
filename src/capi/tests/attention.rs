//! Attention through the ABI against the library's own, on the processor.

use std::ffi::c_void;
use std::ptr;

use super::super::append::*;
use super::super::attention::*;
use super::super::attention_run::*;
use super::super::batch::*;
use super::super::blocks::*;
use super::super::device::*;
use super::super::ffi::Versioned;
use super::super::kv::*;
use super::super::merge::*;
use super::super::rope::*;
use super::super::status::inflight_status;
use super::super::step_buffer::*;
use super::super::step_view::{inflight_block_op, inflight_group};
use super::super::tensor::*;
use super::{Numbers, at, done, field, refused};
use crate::device::cpu::{Cpu, CpuConfig};
use crate::kernels::rope::{RopeConfig, RopePairs};
use crate::kernels::tensor::Shape;
use crate::kernels::{
    AttentionConfig, BatchView, DType, KvCache, KvLayout, KvScales, StepArrays, StepLimits,
    TensorMut, TensorRef, cpu,
};
use crate::types::BlockId;

const BLOCKS: usize = 8;
const SIZE: usize = 4;
const Q_HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 16;
const TOKENS: usize = 6;

/// Two rows: a prompt of 5 tokens in blocks 3 and 6, and a decode of one over 3 keys in block 1.
const QO: [u32; 3] = [0, 5, 6];
const KV: [u32; 3] = [0, 2, 3];
const TABLES: [u32; 3] = [3, 6, 1];
const LAST: [u32; 2] = [1, 3];
const SLOTS: [i64; TOKENS] = [12, 13, 14, 15, 24, 6];
const POSITIONS: [u32; TOKENS] = [0, 1, 2, 3, 4, 2];

fn device() -> *mut inflight_device {
    let config = inflight_cpu_config { threads: 2, ..inflight_cpu_config::initial() };
    let mut device = ptr::null_mut();
    // SAFETY: all pointers are of this function.
    done(|e| unsafe { inflight_device_create_cpu(&raw const config, &raw mut device, e) });
    device
}

fn config() -> inflight_attention_config {
    inflight_attention_config {
        num_q_heads: Q_HEADS as u32,
        num_kv_heads: KV_HEADS as u32,
        head_dim: DIM as u32,
        q_dtype: INFLIGHT_DTYPE_F32,
        ..inflight_attention_config::initial()
    }
}

fn limits() -> inflight_step_limits {
    inflight_step_limits {
        max_rows: 8,
        max_tokens: 64,
        max_blocks: 32,
        max_kv_len: 64,
        max_mask_bytes: 16,
        ..inflight_step_limits::initial()
    }
}

fn group() -> inflight_group {
    inflight_group {
        kv_indptr: KV.as_ptr(),
        kv_indices: TABLES.as_ptr(),
        kv_last_page_len: LAST.as_ptr(),
        slot_mapping: SLOTS.as_ptr(),
        num_kv_blocks: 3,
        block_size: SIZE as u32,
        ..inflight_group::initial()
    }
}

fn batch() -> inflight_batch {
    inflight_batch {
        qo_indptr: QO.as_ptr(),
        positions: POSITIONS.as_ptr(),
        groups: at(group()),
        num_rows: 2,
        num_tokens: TOKENS as u32,
        ..inflight_batch::initial()
    }
}

fn tensor(data: *mut f32, tokens: usize, heads: usize) -> inflight_tensor {
    let mut tensor = inflight_tensor::initial();
    let (tokens, heads) = (tokens as u64, heads as u32);
    // SAFETY: the tensor is of this function.
    done(|e| unsafe {
        let (tensor, data) = (&raw mut tensor, data.cast());
        let dim = DIM as u32;
        inflight_tensor_set_contiguous(tensor, INFLIGHT_DTYPE_F32, data, tokens, heads, dim, e)
    });
    tensor
}

/// Numbers at a multiple of 16 bytes.
#[derive(Clone)]
struct Aligned(Vec<[f32; 4]>);

impl Aligned {
    fn new(len: usize) -> Self {
        Self(vec![[0.0; 4]; len / 4])
    }

    fn ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }

    fn of(&mut self) -> &mut [f32] {
        self.0.as_flattened_mut()
    }
}

const CACHE: usize = BLOCKS * SIZE * KV_HEADS * DIM;

fn kv_cache(k: *mut f32, v: *mut f32) -> inflight_kv_cache {
    let mut cache = inflight_kv_cache::initial();
    let (layout, dtype) = (INFLIGHT_LAYOUT_HND, INFLIGHT_DTYPE_F32);
    let [blocks, size, heads, dim] = [BLOCKS, SIZE, KV_HEADS, DIM].map(|n| n as u32);
    // SAFETY: the cache is of this function.
    done(|e| unsafe {
        let (cache, k, v) = (&raw mut cache, k.cast(), v.cast());
        let blocks = blocks.into();
        inflight_kv_cache_set_contiguous(cache, layout, dtype, k, v, blocks, size, heads, dim, e)
    });
    cache
}

/// All handles of a run.
struct World {
    device: *mut inflight_device,
    attention: *mut inflight_attention,
    step: *mut inflight_step_buffer,
    k: Aligned,
    v: Aligned,
}

impl World {
    fn new() -> Self {
        let (device, config, limits) = (device(), config(), limits());
        let (mut attention, mut step) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: all pointers are of this function.
        done(|e| unsafe {
            let (config, limits) = (&raw const config, &raw const limits);
            inflight_attention_create(device, config, limits, &raw mut attention, e)
        });
        // SAFETY: all pointers are of this function.
        done(|e| unsafe {
            let (limits, all) = (&raw const limits, &raw const attention);
            inflight_step_buffer_create(device, limits, all, 1, &raw mut step, e)
        });
        let (k, v) = (Aligned::new(CACHE), Aligned::new(CACHE));
        Self { device, attention, step, k, v }
    }

    fn plan(&self, batch: inflight_batch) {
        // SAFETY: the batch is of this function.
        done(|e| unsafe {
            let batch = &raw const batch;
            inflight_attention_plan(self.attention, batch, BLOCKS as u64, ptr::null(), e)
        });
        let none = ptr::null_mut();
        // SAFETY: the batch is of this function.
        done(|e| unsafe { inflight_step_buffer_upload(self.step, &raw const batch, none, e) });
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // In the order that asks most: what others were made with goes first.
        // SAFETY: they are not used any more.
        unsafe { inflight_device_free(self.device) };
        // SAFETY: as above.
        unsafe { inflight_attention_free(self.attention) };
        // SAFETY: as above.
        unsafe { inflight_step_buffer_free(self.step) };
    }
}

fn numbers(random: &mut Numbers, len: usize) -> Vec<f32> {
    (0..len).map(|_| random.below(2001) as f32 / 1000.0 - 1.0).collect()
}

#[test]
fn a_step_gives_the_librarys_bits() {
    let mut world = World::new();
    let mut random = Numbers(3);
    let mut new_k = numbers(&mut random, TOKENS * KV_HEADS * DIM);
    let mut new_v = numbers(&mut random, TOKENS * KV_HEADS * DIM);
    let mut q = numbers(&mut random, TOKENS * Q_HEADS * DIM);
    world.k.of().copy_from_slice(&numbers(&mut random, CACHE));
    world.v.of().copy_from_slice(&numbers(&mut random, CACHE));
    let slopes = [0.5_f32, 0.25, 0.125, 0.0625];
    let sinks = [0.1_f32, -0.2, 0.3, f32::NEG_INFINITY];

    // The library's.
    let rope = RopeConfig::new(DIM, 10_000.0).table(8).expect("a table");
    let (mut k, mut v, mut turned) = (world.k.clone(), world.v.clone(), q.clone());
    let cpu = Cpu::new(&CpuConfig { threads: Some(2), ..CpuConfig::default() }).expect("a cpu");
    let layout = KvLayout::hnd(DType::F32, BLOCKS, SIZE, KV_HEADS, DIM);
    let mut cache = KvCache::new(k.of(), v.of(), layout).expect("a cache");
    let new = Shape::contiguous(TOKENS, KV_HEADS, DIM);
    let shape = Shape::contiguous(TOKENS, Q_HEADS, DIM);
    let append = cpu::Append {
        k: TensorRef::new(&new_k, new).expect("keys"),
        v: TensorRef::new(&new_v, new).expect("values"),
        slot_mapping: &SLOTS,
        scales: KvScales::NONE,
        rope: Some(cpu::Rope {
            positions: &POSITIONS,
            cos_sin: &rope,
            rotary_dim: DIM,
            pairs: RopePairs::Interleaved,
            q: Some(TensorMut::new(&mut turned, shape).expect("queries")),
        }),
    };
    cpu::append(&cpu, &mut cache, append).expect("appended");
    let of = AttentionConfig::new(Q_HEADS, KV_HEADS, DIM, DType::F32);
    let mut attention = cpu::Attention::new(&cpu, of, StepLimits::MAX).expect("attention");
    let mut step = cpu::StepBuffer::new(StepLimits::MAX, &[&attention]).expect("a buffer");
    let tables = TABLES.map(BlockId);
    let rows = BatchView {
        qo_indptr: &QO,
        kv_indptr: &KV,
        kv_indices: &tables,
        kv_last_page_len: &LAST,
        block_size: SIZE,
    };
    attention.plan(rows, BLOCKS, None).expect("a plan");
    step.upload(&StepArrays::new(rows), &[&attention]).expect("uploaded");
    let (mut o, mut lse) = (vec![0.0; q.len()], vec![0.0; TOKENS * Q_HEADS]);
    let args = cpu::AttentionArgs {
        q: TensorRef::new(&turned, shape).expect("queries"),
        cache: &cache,
        scales: KvScales::NONE,
        o: TensorMut::new(&mut o, shape).expect("outputs"),
        lse: Some(&mut lse),
        alibi_slopes: Some(&slopes),
        sinks: Some(&sinks),
    };
    attention.run(&step, 0, args).expect("run");

    // The same through the ABI.
    let of = inflight_rope_config { rotary_dim: DIM as u32, ..inflight_rope_config::initial() };
    let mut table = vec![0.0_f32; 8 * DIM];
    // SAFETY: the table is as long as that.
    done(|e| unsafe { inflight_rope_table(&raw const of, 8, table.as_mut_ptr(), table.len(), e) });
    assert_eq!(table, rope);
    world.plan(batch());
    let queries = tensor(q.as_mut_ptr(), TOKENS, Q_HEADS);
    let turn = inflight_rope {
        cos_sin: table.as_ptr(),
        q: &raw const queries,
        max_position: 8,
        rotary_dim: DIM as u32,
        pairs: INFLIGHT_ROPE_PAIRS_INTERLEAVED,
        ..inflight_rope::initial()
    };
    let cache = kv_cache(world.k.ptr(), world.v.ptr());
    let append = inflight_append_args {
        k: at(tensor(new_k.as_mut_ptr(), TOKENS, KV_HEADS)),
        v: at(tensor(new_v.as_mut_ptr(), TOKENS, KV_HEADS)),
        cache: &raw const cache,
        rope: &raw const turn,
        ..inflight_append_args::initial()
    };
    let none = ptr::null_mut();
    // SAFETY: all is of this function.
    done(|e| unsafe { inflight_append(world.step, &raw const append, none, e) });
    assert_eq!(q, turned);
    assert_eq!((world.k.of(), world.v.of()), (k.of(), v.of()));
    let (mut out, mut sums) = (vec![f32::NAN; q.len()], vec![f32::NAN; lse.len()]);
    let args = inflight_attention_args {
        q: &raw const queries,
        o: at(tensor(out.as_mut_ptr(), TOKENS, Q_HEADS)),
        cache: &raw const cache,
        lse: sums.as_mut_ptr(),
        alibi_slopes: slopes.as_ptr(),
        sinks: sinks.as_ptr(),
        ..inflight_attention_args::initial()
    };
    let (attention, step) = (world.attention, world.step);
    // SAFETY: all is of this function.
    done(|e| unsafe { inflight_attention_run(attention, step, &raw const args, none, e) });
    assert_eq!((&out, &sums), (&o, &lse));

    // Merged with nothing, a state is itself.
    let mut nothing = vec![f32::NEG_INFINITY; lse.len()];
    let states = [
        inflight_merge_state { o: args.o, lse: sums.as_ptr() },
        inflight_merge_state { o: args.q, lse: nothing.as_mut_ptr() },
    ];
    let mut merged = vec![f32::NAN; q.len()];
    let args = inflight_merge_args {
        states: states.as_ptr(),
        num_states: 2,
        state_size: size_of::<inflight_merge_state>(),
        o: at(tensor(merged.as_mut_ptr(), TOKENS, Q_HEADS)),
        ..inflight_merge_args::initial()
    };
    // SAFETY: all is of this function.
    done(|e| unsafe { inflight_merge(world.device, &raw const args, none, e) });
    assert_eq!(merged, o);
    let many = inflight_merge_args { num_states: 17, ..args };
    // SAFETY: all is of this function.
    let merge = |e| unsafe { inflight_merge(world.device, &raw const many, none, e) };
    assert_eq!(field(merge), "states");
}

#[test]
fn every_field_of_a_run_is_checked() {
    let mut world = World::new();
    let mut q = vec![0.5_f32; TOKENS * Q_HEADS * DIM];
    let mut o = q.clone();
    let (attention, step) = (world.attention, world.step);
    let cache = kv_cache(world.k.ptr(), world.v.ptr());
    let (q, o) = (tensor(q.as_mut_ptr(), TOKENS, Q_HEADS), tensor(o.as_mut_ptr(), TOKENS, Q_HEADS));
    let good = inflight_attention_args {
        q: &raw const q,
        o: &raw const o,
        cache: &raw const cache,
        ..inflight_attention_args::initial()
    };
    let run_on = |args: inflight_attention_args, stream: *mut c_void| {
        // SAFETY: what is not of this function is refused before it is followed.
        move |e| unsafe { inflight_attention_run(attention, step, &raw const args, stream, e) }
    };
    let run = |args| run_on(args, ptr::null_mut());
    assert_eq!(field(run(good)), "plan");
    world.plan(batch());
    done(run(good));
    assert_eq!(field(run_on(good, 64 as *mut c_void)), "stream");
    let tensors = [
        inflight_tensor { data: ptr::null_mut(), ..q },
        inflight_tensor { data: q.data.wrapping_byte_add(1), ..q },
        inflight_tensor { tokens: 5, ..q },
        inflight_tensor { tokens: u64::MAX, ..q },
        inflight_tensor { token_stride: i64::MAX, ..q },
        inflight_tensor { token_stride: -64, ..q },
        inflight_tensor { head_stride: -1, ..q },
        inflight_tensor { heads: 3, ..q },
        inflight_tensor { head_dim: 8, ..q },
        inflight_tensor { dtype: 0, ..q },
        inflight_tensor { dtype: INFLIGHT_DTYPE_F16, ..q },
    ];
    for bad in tensors {
        let bad = &raw const bad;
        assert_eq!(field(run(inflight_attention_args { q: bad, ..good })), "q", "{bad:?}");
        assert_eq!(field(run(inflight_attention_args { o: bad, ..good })), "o", "{bad:?}");
    }
    let newer = at(inflight_tensor { reserved: 1, ..q });
    assert_eq!(field(run(inflight_attention_args { q: newer, ..good })), "reserved");
    let older = at(inflight_tensor { struct_size: 8, ..q });
    let sized = refused(run(inflight_attention_args { o: older, ..good }));
    assert_eq!(sized, (inflight_status::StructSize, "o".to_owned()));
    assert_eq!(field(run(inflight_attention_args { o: ptr::null(), ..good })), "o");
    let overlapping = at(inflight_tensor { token_stride: 8, ..o });
    assert_eq!(field(run(inflight_attention_args { o: overlapping, ..good })), "o");
    let odd = q.data.wrapping_byte_add(2).cast::<f32>();
    assert_eq!(field(run(inflight_attention_args { lse: odd, ..good })), "lse");
    assert_eq!(field(run(inflight_attention_args { alibi_slopes: odd, ..good })), "alibi_slopes");
    assert_eq!(field(run(inflight_attention_args { sinks: odd, ..good })), "sinks");
    assert_eq!(field(run(inflight_attention_args { cache: ptr::null(), ..good })), "cache");
    let nan = [f32::NAN; Q_HEADS];
    let slopes = nan.as_ptr();
    assert_eq!(
        field(run(inflight_attention_args { alibi_slopes: slopes, ..good })),
        "alibi_slopes"
    );
    let scale = [1.0_f32];
    let k = |array| inflight_kv_cache { k: array, ..cache };
    let v = |array| inflight_kv_cache { v: array, ..cache };
    type Array = inflight_kv_array;
    let scaled = Array { scales: scale.as_ptr().cast(), ..cache.k };
    for (bad, name) in [
        (k(Array { data: ptr::null_mut(), ..cache.k }), "cache.k"),
        (v(Array { data: cache.v.data.wrapping_byte_add(4), ..cache.v }), "cache.v"),
        (v(cache.k), "cache.v"),
        (k(Array { block_stride: -1, ..cache.k }), "cache.k"),
        (v(Array { token_stride: 3, ..cache.v }), "cache.v"),
        (k(Array { head_stride: 0, ..cache.k }), "cache.k"),
        (inflight_kv_cache { num_blocks: 0, ..cache }, "cache.num_blocks"),
        (inflight_kv_cache { num_blocks: u64::MAX, ..cache }, "cache.num_blocks"),
        (inflight_kv_cache { num_blocks: 7, ..cache }, "cache"),
        (inflight_kv_cache { block_size: 0, ..cache }, "cache.block_size"),
        (inflight_kv_cache { block_size: 2, ..cache }, "cache"),
        (inflight_kv_cache { num_heads: 1, ..cache }, "cache"),
        (k(Array { head_dim: 8, ..cache.k }), "cache.v.head_dim"),
        (v(Array { head_dim: 8, ..cache.v }), "cache.v.head_dim"),
        (k(Array { dtype: 9, ..cache.k }), "cache.k.dtype"),
        (v(Array { dtype: INFLIGHT_DTYPE_F16, ..cache.v }), "cache.v.dtype"),
        (k(scaled), "cache.k.scales"),
        (v(Array { scales: scale.as_ptr().cast(), ..cache.v }), "cache.v.scales"),
        (k(Array { scale_head_stride: 2, ..scaled }), "cache.k.scale_head_stride"),
        (k(Array { scale_token_stride: 1, ..cache.k }), "cache.k.scales"),
        (k(Array { scale_dtype: INFLIGHT_DTYPE_F16, ..cache.k }), "cache.k.scale_dtype"),
        (v(Array { scale_elements: 16, ..cache.v }), "cache.v.scale_elements"),
        (k(Array { reserved: [0, 1], ..cache.k }), "cache.k.reserved"),
        (v(Array { reserved: [1, 0], ..cache.v }), "cache.v.reserved"),
    ] {
        let args = inflight_attention_args { cache: &raw const bad, ..good };
        assert_eq!(field(run(args)), name, "{bad:?}");
    }
    // A plan that the step buffer does not hold.
    let batch = batch();
    // SAFETY: the batch is of this function.
    done(|e| unsafe { inflight_attention_plan(attention, &raw const batch, 8, ptr::null(), e) });
    assert_eq!(field(run(good)), "step");
    world.plan(batch);
    done(run(good));
}

#[test]
fn every_array_of_a_batch_is_checked() {
    let world = World::new();
    let good = batch();
    let plan = |batch: inflight_batch, blocks: u64| {
        let attention = world.attention;
        // SAFETY: arrays are as long as the batch says, or refused before they are read.
        move |e| unsafe {
            inflight_attention_plan(attention, &raw const batch, blocks, ptr::null(), e)
        }
    };
    let long = [0_u32, 5, 7];
    let back = [0_u32, 5, 4];
    let many = [9_u32, 6, 1];
    let last = [5_u32, 3];
    let one = group();
    let of = |group| inflight_batch { groups: at(group), ..good };
    type Group = inflight_group;
    for (bad, name) in [
        (inflight_batch { qo_indptr: ptr::null(), ..good }, "qo_indptr"),
        (of(Group { kv_indptr: ptr::null(), ..one }), "kv_indptr"),
        (of(Group { kv_indices: ptr::null(), ..one }), "kv_indices"),
        (of(Group { kv_last_page_len: ptr::null(), ..one }), "kv_last_page_len"),
        (inflight_batch { qo_indptr: long.as_ptr(), ..good }, "num_tokens"),
        (inflight_batch { qo_indptr: back.as_ptr(), num_tokens: 4, ..good }, "qo_indptr"),
        (of(Group { kv_indptr: back.as_ptr(), ..one }), "kv_indptr"),
        (of(Group { kv_indptr: long.as_ptr(), ..one }), "kv_indices"),
        (of(Group { kv_indices: many.as_ptr(), ..one }), "kv_indices"),
        (of(Group { kv_last_page_len: last.as_ptr(), ..one }), "kv_last_page_len"),
        (of(Group { num_kv_blocks: 2, ..one }), "kv_indices"),
        (of(Group { block_size: 0, ..one }), "block_size"),
        (inflight_batch { groups: ptr::null(), ..good }, "groups"),
        (inflight_batch { num_groups: 0, ..good }, "num_groups"),
        (inflight_batch { num_groups: 2, ..good }, "num_groups"),
        (inflight_batch { reserved: 1, ..good }, "reserved"),
    ] {
        assert_eq!(field(plan(bad, 8)), name, "{bad:?}");
    }
    let unsized_group = of(Group { struct_size: 8, ..one });
    let sized = refused(plan(unsized_group, 8));
    assert_eq!(sized, (inflight_status::StructSize, "groups".to_owned()));
    assert_eq!(field(plan(good, 6)), "kv_indices");
    // One entry more than the limits have, in rows that are short.
    let (tables, starts, ones) = ([1_u32; 33], [[0_u32, 17, 33], [0, 16, 32]], [1_u32, 1]);
    let short = |starts: &[u32; 3]| {
        of(Group {
            kv_indptr: starts.as_ptr(),
            kv_indices: tables.as_ptr(),
            num_kv_blocks: starts[2],
            kv_last_page_len: ones.as_ptr(),
            block_size: 1,
            ..one
        })
    };
    assert_eq!(field(plan(short(&starts[0]), 8)), "limits");
    // As many as there may be, all of them one block, which a table may name again and again.
    done(plan(short(&starts[1]), 8));
    done(plan(good, i32::MAX as u64));
    assert_eq!(field(plan(good, 1 << 31)), "num_blocks");
    let old = inflight_batch { struct_size: 8, ..good };
    assert_eq!(refused(plan(old, 8)).0, inflight_status::StructSize);
    let (bits, indptr, widths) = ([0xff_u8; 20], [0_u32, 5, 6], [5_u32, 9]);
    let mask = inflight_mask {
        bits: bits.as_ptr(),
        num_bytes: 6,
        indptr: indptr.as_ptr(),
        widths: widths.as_ptr(),
        ..inflight_mask::initial()
    };
    for (bad, name) in [
        (mask, "mask.widths"),
        (inflight_mask { bits: ptr::null(), ..mask }, "mask.bits"),
        (inflight_mask { indptr: ptr::null(), ..mask }, "mask.indptr"),
        (inflight_mask { widths: ptr::null(), ..mask }, "mask.widths"),
        (inflight_mask { num_bytes: 20, ..mask }, "limits"),
    ] {
        let (attention, batch, mask) = (world.attention, &raw const good, &raw const bad);
        // SAFETY: arrays are as long as their structs say.
        let call = |e| unsafe { inflight_attention_plan(attention, batch, 8, mask, e) };
        assert_eq!(field(call), name, "{bad:?}");
    }
}

#[test]
fn configurations_and_limits_are_checked() {
    let device = device();
    let create = |config: inflight_attention_config, limits: inflight_step_limits| {
        move |e| {
            let mut out = ptr::dangling_mut();
            let (config, limits) = (&raw const config, &raw const limits);
            // SAFETY: all is of this function.
            let status =
                unsafe { inflight_attention_create(device, config, limits, &raw mut out, e) };
            assert!(out.is_null());
            status
        }
    };
    let (good, fits) = (config(), limits());
    type Config = inflight_attention_config;
    for (bad, name) in [
        (Config { num_q_heads: 3, ..good }, "num_q_heads"),
        (Config { num_kv_heads: 0, ..good }, "num_kv_heads"),
        (Config { num_kv_heads: u32::MAX, ..good }, "num_kv_heads"),
        (Config { head_dim: 0, ..good }, "head_dim"),
        (Config { head_dim: 264, ..good }, "head_dim"),
        (Config { q_dtype: 0, ..good }, "q_dtype"),
        (Config { q_dtype: INFLIGHT_DTYPE_FP8_E4M3, ..good }, "q_dtype"),
        (Config { kv_dtype: INFLIGHT_DTYPE_F16, ..good }, "kv_dtype"),
        (Config { kv_dtype: 77, ..good }, "kv_dtype"),
        (Config { scale: f32::NAN, ..good }, "scale"),
        (Config { causal: 2, ..good }, "causal"),
        (Config { soft_cap: -1.0, ..good }, "soft_cap"),
        (Config { soft_cap: f32::NAN, ..good }, "soft_cap"),
        (Config { fixed_split: 100, ..good }, "fixed_split"),
    ] {
        assert_eq!(field(create(bad, fits)), name, "{bad:?}");
    }
    type Limits = inflight_step_limits;
    for (bad, name) in [
        (Limits { max_rows: 0, ..fits }, "max_rows"),
        (Limits { max_tokens: u32::MAX, ..fits }, "max_tokens"),
        (Limits { max_blocks: 0, ..fits }, "max_blocks"),
        (Limits { max_kv_len: 1 << 31, ..fits }, "max_kv_len"),
        (Limits { max_mask_bytes: 1 << 31, ..fits }, "max_mask_bytes"),
    ] {
        assert_eq!(field(create(good, bad)), name, "{bad:?}");
    }
    // SAFETY: it is not used any more.
    unsafe { inflight_device_free(device) };
}

#[test]
fn blocks_move_as_the_library_moves_them() {
    let device = device();
    let mut random = Numbers(5);
    let mut sides = [(); 4].map(|()| Aligned(vec![[0.0; 4]; CACHE / 4]));
    sides.iter_mut().for_each(|side| side.of().copy_from_slice(&numbers(&mut random, CACHE)));
    let mut twins = sides.clone();
    let [k, v, host_k, host_v] = &mut sides;
    let (here, there) = (kv_cache(k.ptr(), v.ptr()), kv_cache(host_k.ptr(), host_v.ptr()));
    let mut mover = ptr::null_mut();
    // SAFETY: all is of this function.
    done(|e| unsafe {
        let (here, there) = (&raw const here, &raw const there);
        inflight_block_mover_create(device, here, there, 1, &raw mut mover, e)
    });
    let ops = [[0, 1, 2], [1, 2, 0], [2, 0, 7], [0, 7, 1]]
        .map(|[kind, src, dst]| inflight_block_op { kind, src, dst });
    let run = |ops: &[inflight_block_op]| {
        let (start, size, len) = (ops.as_ptr(), size_of_val(&ops[0]), ops.len());
        // SAFETY: there are so many operations.
        move |e| unsafe { inflight_block_mover_run(mover, start, size, len, ptr::null_mut(), e) }
    };
    done(run(&ops));
    let block = CACHE / BLOCKS;
    for at in 0..2 {
        // Block 1 went to 2, to the host's 0, back to 7, and from there to 1.
        let (device, rest) = twins.split_at_mut(2);
        let (device, host) = (device[at].of(), rest[at].of());
        device.copy_within(block..2 * block, 2 * block);
        host[..block].copy_from_slice(&device[2 * block..3 * block]);
        device[7 * block..].copy_from_slice(&host[..block]);
    }
    for (side, twin) in sides.iter_mut().zip(&mut twins) {
        assert_eq!(side.of(), twin.of());
    }
    assert_eq!(field(run(&[inflight_block_op { kind: 3, src: 0, dst: 0 }])), "ops");
    assert_eq!(field(run(&[inflight_block_op { kind: 0, src: 8, dst: 0 }])), "ops");
    // SAFETY: they are not used any more.
    unsafe { inflight_block_mover_free(mover) };
    // SAFETY: as above.
    unsafe { inflight_device_free(device) };
}

#[test]
fn devices_say_what_they_are() {
    let device = device();
    let mut info = inflight_device_info::initial();
    // SAFETY: all is of this function.
    done(|e| unsafe { inflight_device_get_info(device, &raw mut info, e) });
    assert_eq!((info.kind, info.threads), (INFLIGHT_DEVICE_CPU, 2));
    assert!(!super::text(&info.name).is_empty());
    // SAFETY: it is not used any more.
    unsafe { inflight_device_free(device) };
    let create = |config: inflight_cpu_config| {
        move |e| {
            let mut out = ptr::null_mut();
            // SAFETY: all is of this function.
            unsafe { inflight_device_create_cpu(&raw const config, &raw mut out, e) }
        }
    };
    let good = inflight_cpu_config::initial();
    let none = [u32::MAX];
    let nowhere = inflight_cpu_config { cores: none.as_ptr(), num_cores: 1, ..good };
    assert_eq!(field(create(nowhere)), "cores");
    assert_eq!(field(create(inflight_cpu_config { threads: 1025, ..good })), "threads");
    assert_eq!(field(create(inflight_cpu_config { isa: 7, ..good })), "isa");
}
