//! The workspace of attention: asked for before, and the caller's.

use std::ffi::c_void;
use std::ptr;

use super::super::super::attention::*;
use super::super::super::device::inflight_device;
use super::super::super::tensor::*;
use super::super::{done, field};
use super::data::*;
use super::model::*;
use super::{Memory, On, both};

fn size(on: &On, spec: &Spec) -> u64 {
    let (config, limits, mut bytes) = (config(spec), limits(), u64::MAX);
    // SAFETY: all is of this function.
    done(|e| unsafe {
        let (config, limits) = (&raw const config, &raw const limits);
        inflight_attention_workspace_size(on.device, config, limits, &raw mut bytes, e)
    });
    bytes
}

fn given(spec: &Spec, workspace: *mut c_void, workspace_size: u64) -> inflight_attention_config {
    inflight_attention_config { workspace, workspace_size, ..config(spec) }
}

const WIDE: Spec = Spec {
    q_dtype: INFLIGHT_DTYPE_BF16,
    kv_dtype: INFLIGHT_DTYPE_BF16,
    q_heads: 12,
    dim: 128,
    ..PLAIN
};
const LENS: [(usize, usize); 4] = [(1, 700), (1, 300), (20, 260), (1, 40)];

/// Exactly as much as is asked for, holding anything: the bits are those with the library's own, and
/// nothing is written behind it.
#[test]
fn a_callers_workspace_gives_the_same_bits() {
    let Some([_, gpu]) = both() else { return };
    for spec in [PLAIN, WIDE] {
        let needed = size(&gpu, &spec);
        assert!(needed > 0);
        // NaN, however it is read.
        let memory = gpu.memory(&vec![0xff; needed as usize + 64]);
        let own = Model::new(&gpu, spec);
        let theirs = Model::with(&gpu, spec, given(&spec, memory.ptr(), needed));
        for seed in 0..3 {
            let rows = Rows::new(&LENS, seed + 1);
            let (a, b) = (own.compute(&rows), theirs.compute(&rows));
            assert!(a.o == b.o && a.lse == b.lse && a.kv == b.kv, "step {seed}");
        }
        let after = gpu.read(&memory);
        let (within, behind) = after.split_at(needed as usize);
        assert!(within.iter().any(|&byte| byte != 0xff), "rows are split there");
        assert!(behind.iter().all(|&byte| byte == 0xff), "written behind its end");
    }
}

/// Attentions of two shapes, one after another on one stream, in one graph too.
#[test]
fn attentions_on_one_stream_share_a_workspace() {
    let Some([cpu, gpu]) = both() else { return };
    let specs = [PLAIN, WIDE, Spec { kv_dtype: INFLIGHT_DTYPE_FP8_E4M3, num_scales: 1, ..PLAIN }];
    let needed = specs.iter().map(|spec| size(&gpu, spec)).max().expect("three");
    let memory = gpu.memory(&vec![0xff; needed as usize]);
    let model = |spec| Model::with(&gpu, spec, given(&spec, memory.ptr(), needed));
    let (ours, theirs) = (specs.map(|spec| Model::new(&cpu, spec)), specs.map(model));
    let stream = &gpu.gpu().stream;
    let layers = |stream: *mut c_void| {
        for model in &theirs {
            done(|e| model.append(stream, e));
        }
        // Nothing stands between the runs: each begins when the one before has ended.
        for model in theirs.iter().chain(theirs.iter().rev()) {
            done(|e| model.run(stream, e));
        }
    };
    let mut graph = None;
    for seed in 0..4 {
        let rows = Rows::new(&LENS, seed + 1);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            ours.inputs(seed);
            theirs.inputs(seed);
            theirs.plan(&rows);
            theirs.upload(&rows, gpu.stream());
        }
        match seed {
            0 | 1 => layers(stream.handle()),
            _ => {
                let graph = graph.get_or_insert_with(|| {
                    let capture = stream.capture(|stream| {
                        layers(stream.handle());
                        Ok(())
                    });
                    capture.expect("a graph")
                });
                // Between runs it is the caller's: to hold anything.
                gpu.write(&memory, &vec![0x7f; needed as usize]);
                // SAFETY: what was captured lives, and is in no other use.
                unsafe { graph.launch(stream) }.expect("launched");
            }
        }
        for (ours, theirs) in ours.iter().zip(&theirs) {
            ours.compare(&rows, &ours.compute(&rows), &theirs.answer());
        }
    }
}

#[test]
fn every_unusable_workspace_is_named() {
    let Some([cpu, gpu]) = both() else { return };
    let create = |device: *const inflight_device, config: inflight_attention_config| {
        move |e| {
            let (limits, mut out) = (limits(), ptr::dangling_mut());
            let (config, limits) = (&raw const config, &raw const limits);
            // SAFETY: all is of this function.
            let status =
                unsafe { inflight_attention_create(device, config, limits, &raw mut out, e) };
            // SAFETY: NULL, or just made.
            unsafe { inflight_attention_free(out) };
            status
        }
    };
    let needed = size(&gpu, &PLAIN);
    let memory = gpu.memory(&vec![0; needed as usize]);
    let start = memory.ptr();
    let on_stack = [0_u128; 1];
    let on_stack = on_stack.as_ptr().cast_mut().cast::<c_void>();
    let free = {
        let gone = gpu.memory(&vec![0; needed as usize]);
        gone.ptr()
    };
    done(create(gpu.device, given(&PLAIN, start, needed)));
    done(create(gpu.device, given(&PLAIN, start, u64::MAX)));
    let none = ptr::null_mut();
    for (workspace, bytes, name) in [
        (start, needed - 1, "workspace_size"),
        (start, 0, "workspace_size"),
        (none, needed, "workspace"),
        (none, 1, "workspace"),
        (start.wrapping_byte_add(8), needed, "workspace"),
        // Its end is not there.
        (start.wrapping_byte_add(1 << 40), needed, "workspace"),
        (ptr::without_provenance_mut(!15), needed, "workspace"),
        (on_stack, needed, "workspace"),
        (free, needed, "workspace"),
    ] {
        let refused = field(create(gpu.device, given(&PLAIN, workspace, bytes)));
        assert_eq!(refused, name, "{workspace:?} of {bytes}");
    }
    if let Some(emulator) = gpu.gpu().emulator {
        let alive = emulator.alive();
        emulator.set_foreign(true);
        let refused = field(create(gpu.device, given(&PLAIN, start, needed)));
        emulator.set_foreign(false);
        assert_eq!(refused, "workspace", "of another context");
        assert_eq!(emulator.alive(), alive, "what is refused leaves nothing behind");
    }
    // A processor takes none.
    let word = cpu.memory(&[0; 16]);
    assert_eq!(field(create(cpu.device, given(&PLAIN, word.ptr(), 16))), "workspace");
    assert_eq!(field(create(cpu.device, given(&PLAIN, none, 16))), "workspace");
    assert_eq!(size(&cpu, &PLAIN), 0);
    drop::<Memory>(memory);
}

/// What a creation would refuse, the query does.
#[test]
fn the_query_checks_as_a_creation_does() {
    let Some(both) = both() else { return };
    for on in &both {
        let ask = |config: inflight_attention_config, limits: inflight_step_limits| {
            move |e| {
                let mut bytes = 1;
                let (config, limits) = (&raw const config, &raw const limits);
                // SAFETY: all is of this function.
                let status = unsafe {
                    let bytes = &raw mut bytes;
                    inflight_attention_workspace_size(on.device, config, limits, bytes, e)
                };
                assert_eq!(bytes, 1, "a failed call writes no result");
                status
            }
        };
        let (good, fits) = (config(&PLAIN), limits());
        let odd = inflight_attention_config { head_dim: 68, ..good };
        assert_eq!(field(ask(odd, fits)), "head_dim");
        let none = inflight_step_limits { max_tokens: 0, ..fits };
        assert_eq!(field(ask(good, none)), "max_tokens");
        let (config, limits) = (&raw const good, &raw const fits);
        let (no_config, no_limits, no_bytes) = (ptr::null(), ptr::null(), ptr::null_mut());
        let mut bytes = 0;
        let bytes = &raw mut bytes;
        let (device, nowhere) = (on.device.cast_const(), ptr::null());
        for (device, config, limits, bytes, name) in [
            (nowhere, config, limits, bytes, "device"),
            (device, no_config, limits, bytes, "config"),
            (device, config, no_limits, bytes, "limits"),
            (device, config, limits, no_bytes, "bytes"),
        ] {
            // SAFETY: what is not NULL is of this function.
            let call =
                |e| unsafe { inflight_attention_workspace_size(device, config, limits, bytes, e) };
            assert_eq!(field(call), name);
        }
    }
    let wide = inflight_attention_config { q_dtype: INFLIGHT_DTYPE_F32, ..config(&PLAIN) };
    let wide = inflight_attention_config { kv_dtype: 0, ..wide };
    let (limits, mut bytes) = (limits(), 0);
    let [cpu, gpu] = both.each_ref().map(|on| on.device.cast_const());
    // SAFETY: all is of this function.
    let mut ask = |device| unsafe {
        let (config, limits, bytes) = (&raw const wide, &raw const limits, &raw mut bytes);
        move |e| inflight_attention_workspace_size(device, config, limits, bytes, e)
    };
    done(ask(cpu));
    assert_eq!(field(ask(gpu)), "q_dtype");
}
