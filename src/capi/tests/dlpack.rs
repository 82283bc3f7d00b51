//! Arrays of others, as dlpack.h says them.

use std::ffi::c_void;
use std::ptr;

use super::super::device::*;
use super::super::dlpack::*;
use super::super::ffi::Versioned as _;
use super::super::kv::*;
use super::super::tensor::*;
use super::{done, field};

fn device() -> *mut inflight_device {
    let config = inflight_cpu_config { threads: 1, ..inflight_cpu_config::initial() };
    let mut device = ptr::null_mut();
    // SAFETY: all pointers are of this function.
    done(|e| unsafe { inflight_device_create_cpu(&raw const config, &raw mut device, e) });
    device
}

/// A float32 array of the process's memory.
fn array(data: *mut f32, shape: &mut [i64], strides: *mut i64) -> Tensor {
    Tensor {
        data: data.cast(),
        device_type: 1,
        device_id: 0,
        ndim: shape.len() as i32,
        code: 2,
        bits: 32,
        lanes: 1,
        shape: shape.as_mut_ptr(),
        strides,
        byte_offset: 0,
    }
}

fn versioned(tensor: Tensor) -> Versioned {
    Versioned { version: [1, 9], context: ptr::null_mut(), deleter: None, flags: 0, tensor }
}

#[test]
fn arrays_become_tensors() {
    let device = device();
    let mut data = [0.0_f32; 64];
    let (mut shape, mut strides) = ([2, 2, 8], [32, 8, 1]);
    let start = data.as_mut_ptr();
    let mut out = inflight_tensor::initial();
    let mut see = |managed: &Versioned, write| {
        let from = ptr::from_ref(managed).cast();
        let out = &raw mut out;
        // SAFETY: all is of this function.
        move |e| unsafe {
            inflight_tensor_from_dlpack(device, from, INFLIGHT_DLPACK_VERSIONED, write, out, e)
        }
    };
    let good = array(start, &mut shape, strides.as_mut_ptr());
    let offset = Tensor { byte_offset: 16, ..good };
    done(see(&versioned(offset), 1));
    let read_only = Versioned { flags: 1, ..versioned(good) };
    done(see(&read_only, 0));
    assert_eq!(field(see(&read_only, 1)), "managed");
    assert_eq!(field(see(&Versioned { version: [2, 0], ..read_only }, 0)), "managed");
    assert_eq!(field(see(&versioned(good), 2)), "write");
    let (mut odd, mut huge, mut less) = ([32, 8, 2], [i64::MAX, i64::MAX, 8], [-1, 2, 8]);
    for bad in [
        Tensor { device_type: 2, ..good },
        Tensor { code: 0, ..good },
        Tensor { bits: 64, ..good },
        Tensor { lanes: 4, ..good },
        Tensor { ndim: 2, ..good },
        Tensor { ndim: -1, ..good },
        Tensor { shape: ptr::null_mut(), ..good },
        Tensor { shape: less.as_mut_ptr(), ..good },
        Tensor { shape: huge.as_mut_ptr(), ..good },
        Tensor { shape: huge.as_mut_ptr(), strides: ptr::null_mut(), ..good },
        Tensor { strides: odd.as_mut_ptr(), ..good },
        Tensor { byte_offset: u64::MAX, ..good },
        Tensor { byte_offset: 2, ..good },
        Tensor { data: ptr::null_mut(), ..good },
    ] {
        assert_eq!(field(see(&versioned(bad), 0)), "managed", "{bad:?}");
    }
    done(see(&versioned(Tensor { byte_offset: 16, ..good }), 1));
    assert_eq!(out.data, start.wrapping_add(4).cast());
    assert_eq!((out.tokens, out.heads, out.head_dim), (2, 2, 8));
    assert_eq!((out.token_stride, out.head_stride, out.dtype), (32, 8, INFLIGHT_DTYPE_F32));

    // Without strides and without a version.
    let compact = array(start, &mut shape, ptr::null_mut());
    let old = Managed { tensor: compact, context: ptr::null_mut(), deleter: None };
    let from = (&raw const old).cast();
    let kind = INFLIGHT_DLPACK_UNVERSIONED;
    // SAFETY: all is of this function.
    done(|e| unsafe { inflight_tensor_from_dlpack(device, from, kind, 1, &raw mut out, e) });
    assert_eq!((out.token_stride, out.head_stride), (16, 8));
    // SAFETY: all is of this function.
    let odd = |e| unsafe { inflight_tensor_from_dlpack(device, from, 2, 1, &raw mut out, e) };
    assert_eq!(field(odd), "kind");
    let none = ptr::null();
    // SAFETY: all is of this function.
    let null = |e| unsafe { inflight_tensor_from_dlpack(device, none, kind, 1, &raw mut out, e) };
    assert_eq!(field(null), "managed");
    // SAFETY: it is not used any more.
    unsafe { inflight_device_free(device) };
}

#[test]
fn types_are_those_of_the_kernels() {
    let device = device();
    let mut data = [0.0_f32; 64];
    let mut shape = [2, 2, 8];
    for (code, bits, dtype) in [
        (2, 32, INFLIGHT_DTYPE_F32),
        (2, 16, INFLIGHT_DTYPE_F16),
        (4, 16, INFLIGHT_DTYPE_BF16),
        (10, 8, INFLIGHT_DTYPE_FP8_E4M3),
        (1, 8, INFLIGHT_DTYPE_FP8_E4M3),
    ] {
        let tensor = array(data.as_mut_ptr(), &mut shape, ptr::null_mut());
        let managed = versioned(Tensor { code, bits, ..tensor });
        let (from, mut out) = ((&raw const managed).cast(), inflight_tensor::initial());
        // SAFETY: all is of this function.
        done(|e| unsafe { inflight_tensor_from_dlpack(device, from, 1, 0, &raw mut out, e) });
        assert_eq!(out.dtype, dtype);
    }
    // SAFETY: it is not used any more.
    unsafe { inflight_device_free(device) };
}

#[test]
fn arrays_become_caches() {
    let device = device();
    let mut data = vec![[0.0_f32; 4]; 256];
    let start: *mut f32 = data.as_mut_ptr().cast();
    // `[blocks, 2, tokens, heads, 8]`, of which each is a slice.
    let (mut shape, mut strides) = ([4, 4, 2, 8], [128, 16, 8, 1]);
    let k = versioned(array(start, &mut shape, strides.as_mut_ptr()));
    let v = versioned(array(start.wrapping_add(64), &mut shape, strides.as_mut_ptr()));
    let mut out = None;
    let see = |k: &Versioned, v: &Versioned, layout| {
        let mut cache = inflight_kv_cache::initial();
        let (k, v) = (ptr::from_ref(k).cast(), ptr::from_ref(v).cast());
        move |e, out: &mut Option<inflight_kv_cache>| {
            // SAFETY: all is of this function.
            let status = unsafe {
                inflight_kv_cache_from_dlpack(device, k, v, 1, layout, &raw mut cache, e)
            };
            if status == super::inflight_status::Ok {
                *out = Some(cache);
            }
            status
        }
    };
    for (layout, heads) in [(INFLIGHT_LAYOUT_NHD, 2), (INFLIGHT_LAYOUT_HND, 4)] {
        let mut call = see(&k, &v, layout);
        done(|e| call(e, &mut out));
        let cache = out.expect("a cache");
        assert_eq!((cache.num_blocks, cache.num_heads, cache.k.block_stride), (4, heads, 128));
        assert_eq!(cache.v.data, start.wrapping_add(64).cast::<c_void>());
        let nhd = layout == INFLIGHT_LAYOUT_NHD;
        assert_eq!(cache.k.token_stride, if nhd { 16 } else { 8 });
    }
    let mut other = [4, 4, 1, 8];
    let small = versioned(Tensor { shape: other.as_mut_ptr(), ..v.tensor });
    let read_only = Versioned { flags: 1, ..k };
    let off = versioned(Tensor { byte_offset: 4, ..k.tensor });
    for (k, v, layout, name) in [
        (&k, &small, 1, "v"),
        (&read_only, &v, 1, "k"),
        (&off, &v, 1, "cache.k"),
        (&k, &v, 3, "layout"),
    ] {
        let mut call = see(k, v, layout);
        let at = field(|e| call(e, &mut out));
        assert_eq!(at, name);
    }
    // SAFETY: it is not used any more.
    unsafe { inflight_device_free(device) };
}

unsafe extern "C" fn count(user_data: *mut c_void) {
    // SAFETY: it is the test's number.
    unsafe { *user_data.cast::<u32>() += 1 };
}

#[test]
fn tensors_become_arrays() {
    let device = device();
    let (mut data, mut released) = ([0.0_f32; 64], 0_u32);
    let tensor = inflight_tensor {
        struct_size: size_of::<inflight_tensor>(),
        data: data.as_mut_ptr().cast(),
        tokens: 3,
        token_stride: 16,
        head_stride: 8,
        heads: 2,
        head_dim: 8,
        dtype: INFLIGHT_DTYPE_F32,
        reserved: 0,
    };
    let (mut out, user) = (ptr::null_mut(), (&raw mut released).cast());
    // SAFETY: all is of this function.
    done(|e| unsafe {
        let tensor = &raw const tensor;
        inflight_tensor_to_dlpack(device, tensor, 1, Some(count), user, &raw mut out, e)
    });
    let managed: *mut Versioned = out.cast();
    // SAFETY: it is that, and lives until it is deleted.
    let seen = unsafe { *managed };
    assert_eq!((seen.version, seen.flags, seen.tensor.ndim), ([1, 1], 1, 3));
    assert_eq!((seen.tensor.code, seen.tensor.bits, seen.tensor.lanes), (2, 32, 1));
    let mut back = inflight_tensor::initial();
    // SAFETY: as above.
    done(|e| unsafe { inflight_tensor_from_dlpack(device, out, 1, 0, &raw mut back, e) });
    assert_eq!(format!("{back:?}"), format!("{tensor:?}"));
    assert_eq!(released, 0);
    // SAFETY: deleted once.
    unsafe { seen.deleter.expect("it has one")(managed) };
    assert_eq!(released, 1);
    let bad = inflight_tensor { dtype: 0, ..tensor };
    // SAFETY: all is of this function.
    let refused = field(|e| unsafe {
        inflight_tensor_to_dlpack(device, &raw const bad, 0, Some(count), user, &raw mut out, e)
    });
    assert_eq!((refused.as_str(), out.is_null(), released), ("tensor", true, 1));
    // SAFETY: it is not used any more.
    unsafe { inflight_device_free(device) };
}
