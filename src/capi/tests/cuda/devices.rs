//! What a GPU says of itself, and arrays that are on it.

use std::ffi::c_void;
use std::ptr;

use super::super::super::device::*;
use super::super::super::dlpack::*;
use super::super::super::ffi::Versioned as _;
use super::super::super::kv::*;
use super::super::super::tensor::*;
use super::super::{done, field, text};
use super::both;
use super::data::*;

#[test]
fn gpus_are_counted_and_say_what_they_are() {
    let Some([cpu, gpu]) = both() else { return };
    let (mut count, mut info) = (0, inflight_device_info::initial());
    // SAFETY: all is of this function.
    done(|e| unsafe { inflight_cuda_device_count(&raw mut count, e) });
    assert!(count >= 1);
    // SAFETY: as above.
    assert_eq!(field(|e| unsafe { inflight_cuda_device_count(ptr::null_mut(), e) }), "count");
    let mut out = ptr::dangling_mut();
    // SAFETY: as above.
    let beyond = field(|e| unsafe { inflight_device_create_cuda(count, &raw mut out, e) });
    assert_eq!((beyond.as_str(), out.is_null()), ("device", true));
    // SAFETY: as above.
    done(|e| unsafe { inflight_device_get_info(gpu.device, &raw mut info, e) });
    let known = gpu.gpu().cuda.info();
    assert_eq!((info.kind, info.ordinal), (INFLIGHT_DEVICE_CUDA, 0));
    assert_eq!((info.memory, info.uuid), (known.memory as u64, known.uuid));
    assert_eq!(text(&info.name), known.name);
    let capability = (info.compute_capability_major, info.compute_capability_minor);
    assert_eq!(capability, known.compute_capability);
    assert_eq!((info.multiprocessors, info.threads, info.isa), (known.multiprocessors, 0, 0));

    let check = |device: *mut inflight_device, pointer: *const c_void| {
        // SAFETY: nothing is followed.
        move |e| unsafe { inflight_device_check_pointer(device, pointer, e) }
    };
    let (here, pinned, host) =
        (gpu.memory(&[0; 64]), gpu.host_memory(&[0; 64]), cpu.memory(&[0; 64]));
    done(check(gpu.device, here.ptr()));
    done(check(gpu.device, pinned.ptr()));
    done(check(cpu.device, host.ptr()));
    assert_eq!(field(check(gpu.device, host.ptr())), "pointer");
    assert_eq!(field(check(gpu.device, ptr::null())), "pointer");
    if let Some(emulator) = gpu.gpu().emulator {
        emulator.set_foreign(true);
        let foreign = field(check(gpu.device, here.ptr()));
        emulator.set_foreign(false);
        assert_eq!(foreign, "pointer");
    }
}

#[test]
fn arrays_of_another_device_are_refused() {
    let Some([cpu, gpu]) = both() else { return };
    let shape = [4, 2, 64];
    let (here, there) = (gpu.memory(&[0; 1024]), cpu.memory(&[0; 1024]));
    let cases = [(&cpu, there.ptr()), (&gpu, here.ptr())];
    // kDLCPU, kDLCUDA, kDLCUDAHost, kDLROCM, kDLCUDAManaged.
    let places = [(1, 0), (2, 0), (2, 1), (2, -1), (3, 0), (10, 0), (13, 0), (13, 7)];
    for (on, data) in cases {
        for (kind, id) in places {
            let mut array = Exporter::new(on, data, INFLIGHT_DTYPE_F16, &shape, &[128, 64, 1]);
            (array.tensor.tensor.device_type, array.tensor.tensor.device_id) = (kind, id);
            let (mut out, from) = (inflight_tensor::initial(), array.managed());
            // SAFETY: all is of this function.
            let call = |e| unsafe {
                let versioned = INFLIGHT_DLPACK_VERSIONED;
                inflight_tensor_from_dlpack(on.device, from, versioned, 1, &raw mut out, e)
            };
            let usable = match on.gpu {
                Some(_) => (kind == 2 && id == 0) || kind == 13,
                None => kind == 1 || kind == 3,
            };
            if usable {
                done(call);
                assert_eq!((out.data, out.tokens, out.token_stride), (data, 4, 128));
            } else {
                assert_eq!(field(call), "managed", "type {kind}, number {id}");
                assert!(out.data.is_null(), "it is written where it works alone");
            }
        }
    }
    // Of a cache, the array at fault is named.
    let array = |id| {
        let (shape, strides) = ([2, 16, 2, 8], [256, 16, 8, 1]);
        let mut array = Exporter::new(&gpu, here.ptr(), INFLIGHT_DTYPE_F16, &shape, &strides);
        array.tensor.tensor.device_id = id;
        array
    };
    for (k, v, name) in [(1, 0, "k"), (0, 1, "v")] {
        let (mut k, mut v, mut cache) = (array(k), array(v), inflight_kv_cache::initial());
        let (k, v, cache) = (k.managed(), v.managed(), &raw mut cache);
        let (kind, layout) = (INFLIGHT_DLPACK_VERSIONED, INFLIGHT_LAYOUT_NHD);
        // SAFETY: all is of this function.
        let call =
            |e| unsafe { inflight_kv_cache_from_dlpack(gpu.device, k, v, kind, layout, cache, e) };
        assert_eq!(field(call), name);
    }
}

#[test]
fn exported_tensors_say_where_they_are() {
    let Some([_, gpu]) = both() else { return };
    let memory = gpu.memory(&[0; 1024]);
    let tensor = inflight_tensor {
        struct_size: size_of::<inflight_tensor>(),
        data: memory.ptr(),
        tokens: 4,
        token_stride: 128,
        head_stride: 64,
        heads: 2,
        head_dim: 64,
        dtype: INFLIGHT_DTYPE_BF16,
        reserved: 0,
    };
    let (mut out, none) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: all is of this function.
    done(|e| unsafe {
        let (tensor, out) = (&raw const tensor, &raw mut out);
        inflight_tensor_to_dlpack(gpu.device, tensor, 0, None, none, out, e)
    });
    let managed: *mut Versioned = out.cast();
    // SAFETY: it is that, and lives until it is deleted.
    let seen = unsafe { *managed };
    assert_eq!((seen.tensor.device_type, seen.tensor.device_id), (2, 0));
    let mut back = inflight_tensor::initial();
    // SAFETY: as above.
    done(|e| unsafe { inflight_tensor_from_dlpack(gpu.device, out, 1, 1, &raw mut back, e) });
    assert_eq!(format!("{back:?}"), format!("{tensor:?}"));
    // SAFETY: deleted once.
    unsafe { seen.deleter.expect("it has one")(managed) };
}
