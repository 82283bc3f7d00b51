//! What is refused on a GPU: the status and the field, and nothing is queued.

use std::ffi::c_void;
use std::ptr;

use super::super::super::append::*;
use super::super::super::attention::*;
use super::super::super::attention_run::*;
use super::super::super::batch::*;
use super::super::super::blocks::*;
use super::super::super::device::*;
use super::super::super::ffi::Versioned as _;
use super::super::super::kv::*;
use super::super::super::merge::*;
use super::super::super::rope::*;
use super::super::super::step_buffer::*;
use super::super::super::step_view::{inflight_block_op, inflight_group};
use super::super::super::tensor::*;
use super::super::{at, done, field};
use super::both;
use super::data::*;
use super::model::*;

fn odd<T>(pointer: *mut T, bytes: usize) -> *mut T {
    pointer.wrapping_byte_add(bytes)
}

/// A tensor of a model's arguments.
fn read(tensor: *const inflight_tensor) -> inflight_tensor {
    // SAFETY: models keep theirs.
    unsafe { *tensor }
}

/// Tensors that no operation takes in the place of `good`.
fn bad_tensors(good: inflight_tensor) -> Vec<inflight_tensor> {
    vec![
        inflight_tensor { data: ptr::null_mut(), ..good },
        inflight_tensor { data: odd(good.data, 1), ..good },
        // Aligned for a processor.
        inflight_tensor { data: odd(good.data, 8), ..good },
        inflight_tensor { token_stride: good.token_stride + 4, ..good },
        inflight_tensor { token_stride: 8, ..good },
        inflight_tensor { token_stride: -64, ..good },
        inflight_tensor { tokens: 3, ..good },
        inflight_tensor { tokens: u64::MAX, ..good },
        inflight_tensor { head_dim: good.head_dim - 8, ..good },
        inflight_tensor { dtype: INFLIGHT_DTYPE_BF16, ..good },
        // A processor's.
        inflight_tensor { dtype: INFLIGHT_DTYPE_F32, token_stride: 256, ..good },
        inflight_tensor { dtype: 0, ..good },
    ]
}

fn bad_caches(good: inflight_kv_cache) -> Vec<(inflight_kv_cache, &'static str)> {
    type Array = inflight_kv_array;
    let (k, v) = (good.k, good.v);
    let of = |k, v| inflight_kv_cache { k, v, ..good };
    let scaled = |array| Array { scales: k.data.cast_const(), ..array };
    let typed = |dtype| of(Array { dtype, ..k }, Array { dtype, ..v });
    let heads = |head_dim| of(Array { head_dim, ..k }, Array { head_dim, ..v });
    vec![
        (of(Array { data: ptr::null_mut(), ..k }, v), "cache.k"),
        (of(k, Array { data: odd(v.data, 8), ..v }), "cache.v"),
        (of(k, k), "cache.v"),
        (of(Array { block_stride: -1, ..k }, v), "cache.k"),
        (of(k, Array { token_stride: v.token_stride + 4, ..v }), "cache.v"),
        (inflight_kv_cache { num_blocks: 0, ..good }, "cache.num_blocks"),
        (heads(12), "cache.k.head_dim"),
        (typed(9), "cache.k.dtype"),
        (typed(INFLIGHT_DTYPE_F32), "cache.k.dtype"),
        (of(scaled(k), scaled(v)), "cache.k.scales"),
        (typed(INFLIGHT_DTYPE_FP8_E4M3), "cache.k.scales"),
        (of(k, Array { scale_head_stride: 7, ..scaled(v) }), "cache.v.scale_head_stride"),
        (of(k, Array { reserved: [0, 1], ..v }), "cache.v.reserved"),
    ]
}

#[test]
fn every_field_of_a_layer_is_checked() {
    let Some([_, gpu]) = both() else { return };
    let spec = Spec { rope: INFLIGHT_ROPE_PAIRS_HALF, ..PLAIN };
    let model = Model::new(&gpu, spec);
    let rows = Rows::new(&[(1, 40), (6, 90)], 1);
    let stream = gpu.stream();
    let run = |args: inflight_attention_args| {
        let (attention, step) = (model.attention, model.step);
        // SAFETY: what is not the model's is refused before it is followed.
        move |e| unsafe { inflight_attention_run(attention, step, &raw const args, stream, e) }
    };
    let append = |args: inflight_append_args| {
        let step = model.step;
        // SAFETY: as above.
        move |e| unsafe { inflight_append(step, &raw const args, stream, e) }
    };
    let (rope, good) = (model.rope(), model.run_args());
    let new = model.append_args(&rope);
    assert_eq!(field(run(good)), "plan");
    assert_eq!(field(append(new)), "step", "nothing has been uploaded");
    model.plan(&rows);
    assert_eq!(field(run(good)), "step");
    model.upload(&rows, stream);
    let launches = gpu.launches();
    let before = model.answer();

    type Run = inflight_attention_args;
    for tensor in bad_tensors(read(good.q)) {
        let bad = at(tensor);
        assert_eq!(field(run(Run { q: bad, ..good })), "q", "{tensor:?}");
        assert_eq!(field(run(Run { o: bad, ..good })), "o", "{tensor:?}");
    }
    assert_eq!(field(run(Run { o: good.q, ..good })), "o");
    let lse = odd(good.lse, 2);
    assert_eq!(field(run(Run { lse, ..good })), "lse");
    assert_eq!(field(run(Run { alibi_slopes: lse, ..good })), "alibi_slopes");
    assert_eq!(field(run(Run { sinks: lse, ..good })), "sinks");
    assert_eq!(field(run(Run { cache: ptr::null(), ..good })), "cache");
    type Append = inflight_append_args;
    for tensor in bad_tensors(read(new.k)) {
        // The cache's type is that of the new keys.
        let name = if tensor.dtype == INFLIGHT_DTYPE_BF16 { "cache" } else { "k" };
        let bad = at(tensor);
        assert_eq!(field(append(Append { k: bad, ..new })), name, "{tensor:?}");
        assert_eq!(field(append(Append { v: bad, ..new })), "v", "{tensor:?}");
    }
    assert_eq!(field(append(Append { cache: ptr::null(), ..new })), "cache");
    for (bad, name) in bad_caches(*model.cache) {
        let cache = &raw const bad;
        assert_eq!(field(run(Run { cache, ..good })), name, "{bad:?}");
        assert_eq!(field(append(Append { cache, ..new })), name, "{bad:?}");
    }
    let few = inflight_kv_cache { num_blocks: 1, ..*model.cache };
    assert_eq!(field(run(Run { cache: &raw const few, ..good })), "cache");
    assert_eq!(field(append(Append { cache: &raw const few, ..new })), "slot_mapping");

    type Rope = inflight_rope;
    for (bad, name) in [
        (Rope { cos_sin: ptr::null(), ..rope }, "cos_sin"),
        (Rope { cos_sin: rope.cos_sin.wrapping_add(1), ..rope }, "cos_sin"),
        (Rope { rotary_dim: 7, ..rope }, "rotary_dim"),
        (Rope { rotary_dim: 66, ..rope }, "rotary_dim"),
        (Rope { pairs: 3, ..rope }, "pairs"),
    ] {
        assert_eq!(field(append(model.append_args(&bad))), name, "{bad:?}");
    }
    for bad in bad_tensors(read(good.q)) {
        let bad = Rope { q: &raw const bad, ..rope };
        assert_eq!(field(append(model.append_args(&bad))), "q", "{bad:?}");
    }
    for data in [read(new.k).data, read(new.v).data] {
        let queries = inflight_tensor { data, ..read(good.q) };
        let bad = Rope { q: &raw const queries, ..rope };
        assert_eq!(field(append(model.append_args(&bad))), "q", "in place of keys or values");
    }

    // A step without slots or positions.
    let no_slots = inflight_group { slot_mapping: ptr::null(), ..rows.group() };
    let upload = |batch: inflight_batch| {
        let step = model.step;
        // SAFETY: arrays are as long as the batch says.
        move |e| unsafe { inflight_step_buffer_upload(step, &raw const batch, stream, e) }
    };
    for (batch, name) in [
        (inflight_batch { groups: at(no_slots), ..rows.batch() }, "slot_mapping"),
        (inflight_batch { positions: ptr::null(), ..rows.batch() }, "positions"),
    ] {
        done(upload(batch));
        assert_eq!(field(append(new)), name);
    }
    let other = Rows::new(&[(1, 41), (6, 90)], 1);
    assert_eq!(field(upload(other.batch())), "attentions");
    assert_eq!(gpu.launches(), launches, "nothing was queued");
    let after = model.answer();
    assert!(before.kv == after.kv && before.o == after.o && before.q == after.q);
    // The step uploaded last is still there.
    done(run(good));
}

#[test]
fn every_field_of_a_merge_is_checked() {
    let Some([_, gpu]) = both() else { return };
    let of = |bytes: usize| gpu.memory(&vec![0; bytes]);
    let (o, lse, out) = (of(4096), of(256), of(4096));
    let good = inflight_tensor {
        struct_size: size_of::<inflight_tensor>(),
        data: out.ptr(),
        tokens: 8,
        token_stride: 128,
        head_stride: 64,
        heads: 2,
        head_dim: 64,
        dtype: INFLIGHT_DTYPE_F16,
        reserved: 0,
    };
    let state = inflight_merge_state {
        o: at(inflight_tensor { data: o.ptr(), ..good }),
        lse: lse.ptr().cast_const().cast(),
    };
    let merge = |args: inflight_merge_args| {
        let (device, stream) = (gpu.device, gpu.stream());
        // SAFETY: what is not of this function is refused before it is followed.
        move |e| unsafe { inflight_merge(device, &raw const args, stream, e) }
    };
    let args = inflight_merge_args {
        states: &raw const state,
        num_states: 1,
        state_size: size_of::<inflight_merge_state>(),
        o: at(good),
        ..inflight_merge_args::initial()
    };
    done(merge(args));
    let launches = gpu.launches();
    for bad in bad_tensors(good) {
        // Of another type the states are at fault, and of fewer tokens.
        let name = match bad {
            inflight_tensor { dtype: INFLIGHT_DTYPE_BF16, .. } => "states",
            inflight_tensor { head_dim: 56, .. } => "states",
            inflight_tensor { tokens: 3, .. } => continue,
            _ => "o",
        };
        assert_eq!(field(merge(inflight_merge_args { o: at(bad), ..args })), name, "{bad:?}");
    }
    for bad in bad_tensors(read(state.o)) {
        let bad = inflight_merge_state { o: at(bad), ..state };
        let states = &raw const bad;
        assert_eq!(field(merge(inflight_merge_args { states, ..args })), "states", "{bad:?}");
    }
    for lse in [ptr::null(), state.lse.wrapping_byte_add(2)] {
        let bad = inflight_merge_state { lse, ..state };
        let states = &raw const bad;
        assert_eq!(field(merge(inflight_merge_args { states, ..args })), "states");
    }
    let none = ptr::null();
    assert_eq!(field(merge(inflight_merge_args { states: none, ..args })), "states");
    for num_states in [0, INFLIGHT_MAX_STATES + 1] {
        assert_eq!(field(merge(inflight_merge_args { num_states, ..args })), "states");
    }
    for lse in [odd(out.ptr(), 2).cast(), state.lse.cast_mut()] {
        assert_eq!(field(merge(inflight_merge_args { lse, ..args })), "lse");
    }
    assert_eq!(gpu.launches(), launches, "nothing was queued");
}

#[test]
fn block_operations_are_checked() {
    let Some([_, gpu]) = both() else { return };
    let model = Model::new(&gpu, PLAIN);
    let good = *model.cache;
    let create = |here: inflight_kv_cache, host: Option<inflight_kv_cache>| {
        move |e| {
            let mut out = ptr::null_mut();
            let there = host.as_ref().map_or(ptr::null(), |host| &raw const *host);
            let (device, here) = (gpu.device, &raw const here);
            // SAFETY: all is of this function.
            unsafe { inflight_block_mover_create(device, here, there, 1, &raw mut out, e) }
        }
    };
    for (bad, name) in bad_caches(good) {
        assert_eq!(field(create(bad, None)), name, "{bad:?}");
    }
    // Blocks with gaps, and hosts of another shape.
    let k = inflight_kv_array { token_stride: 2 * good.k.token_stride, ..good.k };
    let gaps = inflight_kv_cache { k, num_blocks: 1, ..good };
    assert_eq!(field(create(gaps, None)), "device_caches");
    let other = inflight_kv_cache { block_size: 8, ..good };
    assert_eq!(field(create(good, Some(other))), "host_caches");
    let mut mover = ptr::null_mut();
    // SAFETY: all is of this function.
    done(|e| unsafe {
        inflight_block_mover_create(gpu.device, &raw const good, ptr::null(), 1, &raw mut mover, e)
    });
    let launches = gpu.launches();
    let blocks = BLOCKS as u32;
    for ([kind, src, dst], name) in [
        ([3, 0, 0], "ops"),
        ([0, blocks, 0], "ops"),
        ([0, 0, blocks], "ops"),
        ([1, 0, 0], "host_caches"),
        ([2, 0, 0], "host_caches"),
    ] {
        // Nothing of a list is done where one of it is refused.
        let ops = [[0, 1, 2], [kind, src, dst]];
        let ops = ops.map(|[kind, src, dst]| inflight_block_op { kind, src, dst });
        let (start, stream) = (ops.as_ptr(), gpu.stream());
        // SAFETY: there are two operations.
        let call = |e| unsafe { inflight_block_mover_run(mover, start, 12, 2, stream, e) };
        assert_eq!(field(call), name, "{ops:?}");
    }
    assert_eq!(gpu.launches(), launches, "nothing was queued");
    // SAFETY: it is not used any more.
    unsafe { inflight_block_mover_free(mover) };
}

/// Streams of another context, in every call that takes one.
#[test]
fn streams_of_others_are_refused() {
    let Some([cpu, gpu]) = both() else { return };
    let Some(emulator) = gpu.gpu().emulator else { return };
    let model = Model::new(&gpu, PLAIN);
    let rows = Rows::new(&[(1, 40), (6, 90)], 1);
    model.compute(&rows);
    let (batch, run, op) =
        (rows.batch(), model.run_args(), inflight_block_op { kind: 0, src: 1, dst: 2 });
    let state = inflight_merge_state { o: run.o, lse: run.lse };
    let merge = inflight_merge_args {
        states: &raw const state,
        num_states: 1,
        state_size: size_of::<inflight_merge_state>(),
        o: run.o,
        ..inflight_merge_args::initial()
    };
    let mut mover = ptr::null_mut();
    // SAFETY: all is of this function.
    done(|e| unsafe {
        let (cache, none) = (&raw const *model.cache, ptr::null());
        inflight_block_mover_create(gpu.device, cache, none, 1, &raw mut mover, e)
    });
    let fields = |stream: *mut c_void| {
        [
            field(|e| model.append(stream, e)),
            field(|e| model.run(stream, e)),
            // SAFETY: all is of this function, and refused.
            field(|e| unsafe { inflight_merge(gpu.device, &raw const merge, stream, e) }),
            // SAFETY: as above.
            field(|e| unsafe { inflight_block_mover_run(mover, &raw const op, 12, 1, stream, e) }),
            // SAFETY: as above.
            field(|e| unsafe {
                inflight_step_buffer_upload(model.step, &raw const batch, stream, e)
            }),
        ]
    };
    let launches = gpu.launches();
    emulator.set_foreign(true);
    let found = [gpu.stream(), ptr::null_mut()].map(fields);
    emulator.set_foreign(false);
    assert_eq!(found.concat(), ["stream"; 10]);
    assert_eq!(gpu.launches(), launches, "nothing was queued");
    done(|e| model.run(gpu.stream(), e));
    // A processor has none.
    let ours = Model::new(&cpu, PLAIN);
    ours.compute(&rows);
    assert_eq!(field(|e| ours.run(gpu.stream(), e)), "stream");
    assert_eq!(field(|e| ours.append(gpu.stream(), e)), "stream");
    // SAFETY: it is not used any more.
    unsafe { inflight_block_mover_free(mover) };
}

/// Attentions, step buffers and devices of two kinds; two handles of one GPU are one device.
#[test]
fn handles_of_another_device_are_refused() {
    let Some([cpu, gpu]) = both() else { return };
    let (ours, theirs) = (Model::new(&cpu, PLAIN), Model::new(&gpu, PLAIN));
    let buffer = |device: *const inflight_device, attention: *mut inflight_attention| {
        move |e| {
            let (limits, mut out) = (limits(), ptr::null_mut());
            let (limits, all) = (&raw const limits, &raw const attention);
            // SAFETY: all is of this function.
            let status =
                unsafe { inflight_step_buffer_create(device, limits, all, 1, &raw mut out, e) };
            // SAFETY: NULL, or just made.
            unsafe { inflight_step_buffer_free(out) };
            status
        }
    };
    assert_eq!(field(buffer(gpu.device, ours.attention)), "attentions");
    assert_eq!(field(buffer(cpu.device, theirs.attention)), "attentions");
    let mut again = ptr::null_mut();
    // SAFETY: all is of this function.
    done(|e| unsafe { inflight_device_create_cuda(0, &raw mut again, e) });
    done(buffer(again, theirs.attention));
    // SAFETY: it is not used any more.
    unsafe { inflight_device_free(again) };

    let rows = Rows::new(&[(1, 40), (6, 90)], 1);
    ours.compute(&rows);
    theirs.compute(&rows);
    let launches = gpu.launches();
    let run = |attention, step, args: inflight_attention_args, stream| {
        // SAFETY: refused before anything is followed.
        move |e| unsafe { inflight_attention_run(attention, step, &raw const args, stream, e) }
    };
    let none = ptr::null_mut();
    let (attention, step) = (theirs.attention, theirs.step);
    assert_eq!(field(run(attention, ours.step, theirs.run_args(), gpu.stream())), "step");
    assert_eq!(field(run(ours.attention, step, ours.run_args(), none)), "step");
    assert_eq!(gpu.launches(), launches, "nothing was queued");
}
