//! The same flow on a GPU, or on the emulator that runs its kernels.

use std::ffi::c_void;
use std::ptr;

use half::f16;

use super::super::append::*;
use super::super::attention::*;
use super::super::batch::*;
use super::super::device::*;
use super::super::guard::Versioned;
use super::super::kv::*;
use super::super::plan::*;
use super::super::steps::*;
use super::super::tensor::*;
use super::{done, field};
use crate::device::cuda::{Cuda, CudaBuffer, CudaStream};

const BLOCKS: usize = 8;
const SIZE: usize = 16;
const HEADS: usize = 2;
const DIM: usize = 64;
const TOKENS: usize = 6;
const ROW: usize = HEADS * DIM;

fn pointer(buffer: &CudaBuffer) -> *mut c_void {
    ptr::without_provenance_mut(buffer.address() as usize)
}

fn tensor(buffer: &CudaBuffer, heads: usize) -> inflight_tensor {
    let mut tensor = inflight_tensor {
        data: pointer(buffer),
        tokens: TOKENS as u64,
        heads: heads as u32,
        head_dim: DIM as u32,
        dtype: INFLIGHT_DTYPE_F16,
        ..inflight_tensor::NONE
    };
    // SAFETY: the tensor is of this function.
    done(|e| unsafe { inflight_tensor_set_strides(&raw mut tensor, e) });
    tensor
}

#[test]
fn a_step_on_a_callers_stream() {
    if let Err(why) = simt::device(simt::Mode::Fast)
        && !simt::wants_real_driver()
    {
        println!("skipped: {why}");
        return;
    }
    let Ok(cuda) = Cuda::new(0) else { return println!("skipped: no device") };
    let stream = CudaStream::new(&cuda).expect("a stream");
    let buffer = |len: usize| {
        let buffer = CudaBuffer::new(&cuda, len * 2).expect("memory");
        stream.fill(&buffer, 0, len * 2, 0).expect("queued");
        buffer
    };
    let mut device = ptr::null_mut();
    // SAFETY: all pointers are of this function.
    done(|e| unsafe { inflight_device_create_cuda(0, &raw mut device, e) });
    let config = inflight_attention_config {
        num_q_heads: 2 * HEADS as u32,
        num_kv_heads: HEADS as u32,
        head_dim: DIM as u32,
        q_dtype: INFLIGHT_DTYPE_F16,
        ..inflight_attention_config::initial()
    };
    let limits = inflight_step_limits {
        max_rows: 4,
        max_tokens: 16,
        max_blocks: 16,
        max_kv_len: 64,
        ..inflight_step_limits::initial()
    };
    let (mut attention, mut step) = (ptr::null_mut(), ptr::null_mut());
    let create = |config: inflight_attention_config, out: *mut *mut inflight_attention| {
        let limits = &raw const limits;
        // SAFETY: all pointers are of this function.
        move |e| unsafe { inflight_attention_create(device, &raw const config, limits, out, e) }
    };
    let wide = inflight_attention_config { q_dtype: INFLIGHT_DTYPE_F32, ..config };
    assert_eq!(field(create(wide, &raw mut attention)), "q_dtype");
    done(create(config, &raw mut attention));
    let mut bytes = 0;
    // SAFETY: all pointers are of this function.
    done(|e| unsafe { inflight_attention_workspace_size(attention, &raw mut bytes, e) });
    assert!(bytes > 0);
    // SAFETY: all pointers are of this function.
    done(|e| unsafe {
        let (limits, all) = (&raw const limits, &raw const attention);
        inflight_step_buffer_create(device, limits, all, 1, &raw mut step, e)
    });

    // A prompt of 5 tokens in block 3, and a decode of the first token of block 1.
    let (qo, kv, tables, last) = ([0_u32, 5, 6], [0_u32, 1, 2], [3_u32, 1], [5_u32, 1]);
    let slots = [48_i64, 49, 50, 51, 52, 16];
    let batch = inflight_batch {
        qo_indptr: qo.as_ptr(),
        kv_indptr: kv.as_ptr(),
        kv_indices: tables.as_ptr(),
        kv_last_page_len: last.as_ptr(),
        slot_mapping: slots.as_ptr(),
        num_rows: 2,
        num_tokens: TOKENS as u32,
        num_kv_blocks: 2,
        block_size: SIZE as u32,
        ..inflight_batch::initial()
    };
    let blocks = BLOCKS as u64;
    // SAFETY: the batch is of this function.
    done(|e| unsafe {
        inflight_attention_plan(attention, &raw const batch, blocks, ptr::null(), e)
    });
    let handle = stream.handle();
    // SAFETY: the batch is of this function, and the stream lives.
    done(|e| unsafe { inflight_step_buffer_upload(step, &raw const batch, handle, e) });

    let positions = [0.0_f32, 1.0, 2.0, 3.0, 4.0, 7.0];
    let new: Vec<f16> = positions.iter().flat_map(|&at| [f16::from_f32(at); ROW]).collect();
    let (k, v) = (buffer(BLOCKS * SIZE * ROW), buffer(BLOCKS * SIZE * ROW));
    let (fresh, q, o) = (buffer(TOKENS * ROW), buffer(2 * TOKENS * ROW), buffer(2 * TOKENS * ROW));
    stream.write(&fresh, 0, bytemuck::cast_slice(&new)).expect("written");
    let mut cache = inflight_kv_cache {
        k: pointer(&k),
        v: pointer(&v),
        k_scales: ptr::null(),
        v_scales: ptr::null(),
        k_block_stride: 0,
        k_token_stride: 0,
        k_head_stride: 0,
        v_block_stride: 0,
        v_token_stride: 0,
        v_head_stride: 0,
        num_blocks: blocks,
        block_size: SIZE as u32,
        num_heads: HEADS as u32,
        head_dim: DIM as u32,
        dtype: INFLIGHT_DTYPE_F16,
        num_scales: 0,
        reserved: [0; 9],
    };
    // SAFETY: the cache is of this function.
    done(|e| unsafe { inflight_kv_cache_set_strides(&raw mut cache, INFLIGHT_LAYOUT_NHD, e) });
    let append = inflight_append_args {
        k: tensor(&fresh, HEADS),
        v: tensor(&fresh, HEADS),
        cache: &raw const cache,
        ..inflight_append_args::initial()
    };
    // SAFETY: all addresses are of buffers that live until the stream is done.
    done(|e| unsafe { inflight_append(step, &raw const append, handle, e) });
    let args = inflight_attention_args {
        q: tensor(&q, 2 * HEADS),
        o: tensor(&o, 2 * HEADS),
        cache: &raw const cache,
        ..inflight_attention_args::initial()
    };
    // SAFETY: as above.
    done(|e| unsafe { inflight_attention_run(attention, step, &raw const args, handle, e) });
    // Queries of zeros see the mean of what their keys hold.
    let mut bytes = vec![0_u8; 2 * TOKENS * ROW * 2];
    stream.read(&mut bytes, &o, 0).expect("done");
    for (token, row) in bytes.chunks_exact(2 * ROW * 2).enumerate() {
        let mean = if token == 5 { 7.0 } else { positions[token] / 2.0 };
        for number in row.chunks_exact(2) {
            let number = f16::from_le_bytes([number[0], number[1]]).to_f32();
            assert!((number - mean).abs() < 1e-2, "token {token}: {number}, not {mean}");
        }
    }
    let odd = inflight_attention_args { lse: ptr::without_provenance_mut(2), ..args };
    // SAFETY: refused before it is followed.
    let refused = |e| unsafe { inflight_attention_run(attention, step, &raw const odd, handle, e) };
    assert_eq!(field(refused), "lse");
    // SAFETY: nobody uses them any more.
    unsafe { inflight_device_free(device) };
    // SAFETY: as above.
    unsafe { inflight_attention_free(attention) };
    // SAFETY: as above.
    unsafe { inflight_step_buffer_free(step) };
}
