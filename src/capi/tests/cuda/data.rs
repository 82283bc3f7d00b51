//! What models are given: numbers, rows, and arrays of others.

use std::ffi::c_void;
use std::ptr;

use half::{bf16, f16};

use super::super::super::batch::*;
use super::super::super::dlpack;
use super::super::super::ffi::Versioned;
use super::super::super::step_view::inflight_group;
use super::super::super::tensor::*;
use super::super::{Numbers, at};
use super::On;
use crate::kernels::tensor::Fp8E4m3;

pub(super) const BLOCKS: usize = 96;
pub(super) const SIZE: usize = 16;

pub(super) fn size_of_type(dtype: u32) -> usize {
    match dtype {
        INFLIGHT_DTYPE_F32 => 4,
        INFLIGHT_DTYPE_FP8_E4M3 => 1,
        _ => 2,
    }
}

pub(super) fn encode(dtype: u32, numbers: &[f32]) -> Vec<u8> {
    let bytes = |x: &f32| match dtype {
        INFLIGHT_DTYPE_F32 => x.to_le_bytes().to_vec(),
        INFLIGHT_DTYPE_F16 => f16::from_f32(*x).to_le_bytes().to_vec(),
        INFLIGHT_DTYPE_BF16 => bf16::from_f32(*x).to_le_bytes().to_vec(),
        _ => vec![bytemuck::cast(Fp8E4m3::from_f32(*x))],
    };
    numbers.iter().flat_map(bytes).collect()
}

pub(super) fn decode(dtype: u32, bytes: &[u8]) -> Vec<f32> {
    let number = |x: &[u8]| match dtype {
        INFLIGHT_DTYPE_F32 => f32::from_le_bytes([x[0], x[1], x[2], x[3]]),
        INFLIGHT_DTYPE_F16 => f16::from_le_bytes([x[0], x[1]]).to_f32(),
        INFLIGHT_DTYPE_BF16 => bf16::from_le_bytes([x[0], x[1]]).to_f32(),
        _ => bytemuck::cast::<u8, Fp8E4m3>(x[0]).to_f32(),
    };
    bytes.chunks_exact(size_of_type(dtype)).map(number).collect()
}

/// Numbers from -1 to 1, in a type's bytes.
pub(super) fn random(dtype: u32, len: usize, seed: u64) -> Vec<u8> {
    let mut random = Numbers(seed);
    let numbers: Vec<f32> = (0..len).map(|_| random.below(2001) as f32 / 1e3 - 1.0).collect();
    encode(dtype, &numbers)
}

/// Compares the first `len` numbers, and that none behind was written.
#[track_caller]
pub(super) fn close(dtype: u32, cpu: &[u8], gpu: &[u8], len: usize, tolerance: f32) {
    let (ours, theirs) = (decode(dtype, cpu), decode(dtype, gpu));
    assert!(ours.len() == theirs.len() && len <= ours.len());
    for (at, (a, b)) in ours.iter().zip(&theirs).take(len).enumerate() {
        let same = a == b || (a - b).abs() <= tolerance * a.abs().max(1.0);
        assert!(same, "number {at}: {a} on the processor, {b} on the GPU");
    }
    let rest = len * size_of_type(dtype);
    assert!(gpu[rest..].iter().all(|&byte| byte == 0xff), "written past the step's tokens");
    assert!(cpu[rest..].iter().all(|&byte| byte == 0xff), "written past the step's tokens");
}

/// The rows of a step, in blocks in no order.
pub(super) struct Rows {
    qo_indptr: Vec<u32>,
    kv_indptr: Vec<u32>,
    kv_indices: Vec<u32>,
    last: Vec<u32>,
    slots: Vec<i64>,
    positions: Vec<u32>,
    mask_bits: Vec<u8>,
    mask_indptr: Vec<u32>,
    widths: Vec<u32>,
}

impl Rows {
    /// Rows of so many queries over so many keys, their own among them.
    pub(super) fn new(lens: &[(usize, usize)], seed: u64) -> Self {
        let mut random = Numbers(seed);
        let mut free: Vec<u32> = (0..BLOCKS as u32).collect();
        let (zero, none) = (vec![0], Vec::new());
        let mut rows = Self {
            qo_indptr: zero.clone(),
            kv_indptr: zero.clone(),
            kv_indices: none.clone(),
            last: none.clone(),
            slots: Vec::new(),
            positions: none.clone(),
            mask_bits: Vec::new(),
            mask_indptr: zero,
            widths: none,
        };
        for &(queries, keys) in lens {
            let table: Vec<u32> = (0..keys.div_ceil(SIZE))
                .map(|_| free.swap_remove(random.below(free.len())))
                .collect();
            for at in keys - queries..keys {
                rows.slots.push(i64::from(table[at / SIZE]) * SIZE as i64 + (at % SIZE) as i64);
                rows.positions.push(at as u32);
            }
            rows.last.push(if keys == 0 { 0 } else { (keys - 1) % SIZE + 1 } as u32);
            rows.kv_indices.extend(table);
            rows.kv_indptr.push(rows.kv_indices.len() as u32);
            rows.qo_indptr.push(rows.slots.len() as u32);
            let width = keys.min(12);
            rows.mask_bits.extend((0..queries * width.div_ceil(8)).map(|_| random.next() as u8));
            rows.mask_indptr.push(rows.mask_bits.len() as u32);
            rows.widths.push(width as u32);
        }
        rows
    }

    pub(super) fn tokens(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn batch(&self) -> inflight_batch {
        inflight_batch {
            qo_indptr: self.qo_indptr.as_ptr(),
            groups: at(self.group()),
            positions: self.positions.as_ptr(),
            num_rows: self.last.len() as u32,
            num_tokens: self.tokens() as u32,
            ..inflight_batch::initial()
        }
    }

    pub(super) fn group(&self) -> inflight_group {
        inflight_group {
            kv_indptr: self.kv_indptr.as_ptr(),
            kv_indices: self.kv_indices.as_ptr(),
            kv_last_page_len: self.last.as_ptr(),
            slot_mapping: self.slots.as_ptr(),
            num_kv_blocks: self.kv_indices.len() as u32,
            block_size: SIZE as u32,
            ..inflight_group::initial()
        }
    }

    pub(super) fn mask(&self) -> inflight_mask {
        inflight_mask {
            bits: self.mask_bits.as_ptr(),
            num_bytes: self.mask_bits.len(),
            indptr: self.mask_indptr.as_ptr(),
            widths: self.widths.as_ptr(),
            ..inflight_mask::initial()
        }
    }
}

/// An array as another library would export it.
pub(super) struct Exporter {
    shape: Vec<i64>,
    strides: Vec<i64>,
    pub(super) tensor: dlpack::Versioned,
}

impl Exporter {
    pub(super) fn new(
        on: &On,
        data: *mut c_void,
        dtype: u32,
        shape: &[usize],
        strides: &[usize],
    ) -> Self {
        let (code, bits) = match dtype {
            INFLIGHT_DTYPE_F32 => (2, 32),
            INFLIGHT_DTYPE_F16 => (2, 16),
            INFLIGHT_DTYPE_BF16 => (4, 16),
            _ => (10, 8),
        };
        let tensor = dlpack::Tensor {
            data,
            // kDLCUDA, kDLCPU.
            device_type: if on.gpu.is_some() { 2 } else { 1 },
            device_id: 0,
            ndim: shape.len() as i32,
            code,
            bits,
            lanes: 1,
            shape: ptr::null_mut(),
            strides: ptr::null_mut(),
            byte_offset: 0,
        };
        let tensor = dlpack::Versioned {
            version: [1, 0],
            context: ptr::null_mut(),
            deleter: None,
            flags: 0,
            tensor,
        };
        let numbers = |of: &[usize]| of.iter().map(|&n| n as i64).collect();
        Self { shape: numbers(shape), strides: numbers(strides), tensor }
    }

    /// The managed tensor, valid as long as this is neither moved nor dropped.
    pub(super) fn managed(&mut self) -> *const c_void {
        self.tensor.tensor.shape = self.shape.as_mut_ptr();
        self.tensor.tensor.strides = self.strides.as_mut_ptr();
        (&raw const self.tensor).cast()
    }
}
