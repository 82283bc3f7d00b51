//! KV caches and tensors of every layout, in poisoned bytes, and numbers computed the plain way.

#![allow(dead_code, reason = "each test binary uses some of it")]

use half::{bf16, f16};
use inflight::device::cpu::{Cpu, CpuConfig, Isa};
use inflight::device::memory::Buffer;
use inflight::kernels::tensor::{Fp8E4m3, Shape};
use inflight::kernels::{DType, KvCache, KvLayout, KvStrides, TensorMut, TensorRef};
use inflight::{Error, Result};

use super::rng::{Rng, mix};

/// How K and V lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Nhd,
    Hnd,
    /// `[num_blocks, 2, block_size, heads, head_dim]`.
    Interleaved,
    /// K like NHD and V like HND, with gaps after every head, token and block.
    Padded,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Nhd, Self::Hnd, Self::Interleaved, Self::Padded];
}

/// Bytes that hold a K and a V, and where.
pub(crate) struct Memory {
    pub(crate) bytes: Buffer,
    pub(crate) layout: KvLayout,
    pub(crate) starts: [usize; 2],
}

impl Memory {
    pub(crate) fn new(
        kind: Kind,
        dtype: DType,
        [num_blocks, block_size, num_heads, head_dim]: [usize; 4],
        seed: u64,
    ) -> Self {
        // Strides are multiples of 16 bytes.
        let row = if dtype.size() == 1 { head_dim.next_multiple_of(16) } else { head_dim };
        let by_token = |row: usize, gap: usize| {
            let token = num_heads * row + 2 * gap;
            KvStrides { block: block_size * token + gap, token, head: row }
        };
        let by_head = |row: usize, gap: usize| {
            let head = block_size * row + gap;
            KvStrides { block: num_heads * head + 3 * gap, token: row, head }
        };
        let (k, v) = match kind {
            Kind::Nhd => (by_token(row, 0), by_token(row, 0)),
            Kind::Hnd => (by_head(row, 0), by_head(row, 0)),
            Kind::Interleaved => {
                let strides = by_token(row, 0);
                let strides = KvStrides { block: 2 * strides.block, ..strides };
                (strides, strides)
            }
            Kind::Padded => (by_token(row + 16, 16), by_head(row + 16, 16)),
        };
        let layout = KvLayout { dtype, num_blocks, block_size, num_heads, head_dim, k, v };
        let v_start = match kind {
            Kind::Interleaved => k.block / 2,
            _ => layout.k_extent().unwrap().next_multiple_of(16),
        };
        let len = (v_start + layout.v_extent().unwrap() + 16) * dtype.size();
        let mut bytes = Buffer::zeroed(len).unwrap();
        poison(&mut bytes, seed);
        Self { bytes, layout, starts: [0, v_start] }
    }

    pub(crate) fn cache(&mut self) -> KvCache<'_> {
        let [k, v] = self.starts;
        KvCache::combined::<u8>(&mut self.bytes, k, v, self.layout).unwrap()
    }

    /// The first byte of a row of K (0) or V (1).
    pub(crate) fn at(&self, side: usize, block: usize, token: usize, head: usize) -> usize {
        let strides = [self.layout.k, self.layout.v][side];
        let element = block * strides.block + token * strides.token + head * strides.head;
        (self.starts[side] + element) * self.layout.dtype.size()
    }
}

/// Different bytes everywhere.
pub(crate) fn poison(bytes: &mut [u8], seed: u64) {
    for (i, chunk) in bytes.chunks_mut(8).enumerate() {
        chunk.copy_from_slice(&mix(seed.wrapping_add(i as u64)).to_le_bytes()[..chunk.len()]);
    }
}

/// Tokens of heads in poisoned bytes.
pub(crate) struct Tensor {
    pub(crate) bytes: Buffer,
    pub(crate) dtype: DType,
    pub(crate) shape: Shape,
}

impl Tensor {
    /// Contiguous, or with gaps; numbers drawn by `draw`.
    pub(crate) fn new(
        rng: &mut Rng,
        dtype: DType,
        [tokens, heads, head_dim]: [usize; 3],
        gaps: bool,
        mut draw: impl FnMut(&mut Rng) -> f32,
    ) -> Self {
        let mut shape = Shape::contiguous(tokens, heads, head_dim);
        if gaps {
            shape.head_stride += rng.below(3) * 3;
            shape.token_stride = heads * shape.head_stride + rng.below(40);
        }
        let len = (tokens * shape.token_stride + 8) * dtype.size();
        let mut bytes = Buffer::zeroed(len).unwrap();
        poison(&mut bytes, rng.next());
        let mut tensor = Self { bytes, dtype, shape };
        for token in 0..tokens {
            for head in 0..heads {
                for i in 0..head_dim {
                    let at = tensor.at(token, head, i);
                    encode(dtype, draw(rng), &mut tensor.bytes[at..]);
                }
            }
        }
        tensor
    }

    pub(crate) fn at(&self, token: usize, head: usize, i: usize) -> usize {
        let element = token * self.shape.token_stride + head * self.shape.head_stride + i;
        element * self.dtype.size()
    }

    pub(crate) fn get(&self, token: usize, head: usize, i: usize) -> f32 {
        decode(self.dtype, &self.bytes[self.at(token, head, i)..])
    }

    pub(crate) fn view(&self) -> TensorRef<'_> {
        let (shape, bytes) = (self.shape, whole(&self.bytes, self.dtype));
        match self.dtype {
            DType::F32 => TensorRef::new::<f32>(bytemuck::cast_slice(bytes), shape),
            DType::F16 => TensorRef::new::<f16>(bytemuck::cast_slice(bytes), shape),
            DType::Bf16 => TensorRef::new::<bf16>(bytemuck::cast_slice(bytes), shape),
            DType::Fp8E4m3 => TensorRef::new::<Fp8E4m3>(bytemuck::cast_slice(bytes), shape),
        }
        .unwrap()
    }

    pub(crate) fn view_mut(&mut self) -> TensorMut<'_> {
        let (shape, len) = (self.shape, whole(&self.bytes, self.dtype).len());
        let bytes = &mut self.bytes[..len];
        match self.dtype {
            DType::F32 => TensorMut::new::<f32>(bytemuck::cast_slice_mut(bytes), shape),
            DType::F16 => TensorMut::new::<f16>(bytemuck::cast_slice_mut(bytes), shape),
            DType::Bf16 => TensorMut::new::<bf16>(bytemuck::cast_slice_mut(bytes), shape),
            DType::Fp8E4m3 => TensorMut::new::<Fp8E4m3>(bytemuck::cast_slice_mut(bytes), shape),
        }
        .unwrap()
    }
}

fn whole(bytes: &[u8], dtype: DType) -> &[u8] {
    &bytes[..bytes.len() / dtype.size() * dtype.size()]
}

/// Writes a number; f16 and bf16 as the `half` crate rounds, fp8 as [`fp8`] does.
pub(crate) fn encode(dtype: DType, number: f32, to: &mut [u8]) {
    match dtype {
        DType::F32 => to[..4].copy_from_slice(&number.to_le_bytes()),
        DType::F16 => to[..2].copy_from_slice(&f16::from_f32(number).to_le_bytes()),
        DType::Bf16 => to[..2].copy_from_slice(&bf16::from_f32(number).to_le_bytes()),
        DType::Fp8E4m3 => to[0] = fp8(number),
    }
}

pub(crate) fn decode(dtype: DType, from: &[u8]) -> f32 {
    match dtype {
        DType::F32 => f32::from_le_bytes([from[0], from[1], from[2], from[3]]),
        DType::F16 => f16::from_le_bytes([from[0], from[1]]).to_f32(),
        DType::Bf16 => bf16::from_le_bytes([from[0], from[1]]).to_f32(),
        DType::Fp8E4m3 => fp8_value(from[0]) as f32,
    }
}

/// What an e4m3 code stands for, by the definition of the format.
pub(crate) fn fp8_value(code: u8) -> f64 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    match (exponent, mantissa) {
        (15, 7.0) => f64::NAN,
        (0, _) => sign * mantissa / 8.0 * 2_f64.powi(-6),
        _ => sign * (1.0 + mantissa / 8.0) * 2_f64.powi(exponent - 7),
    }
}

/// The nearest e4m3 number, ties to the even code; the largest for what is larger.
pub(crate) fn fp8(number: f32) -> u8 {
    let sign = (number.to_bits() >> 24) as u8 & 0x80;
    if number.is_nan() {
        return sign | 0x7f;
    }
    let number = f64::from(number).abs().min(448.0);
    let codes = 0..=0x7e_u8;
    let far = |code: &u8| (fp8_value(*code) - number).abs();
    // The even code comes first among equals.
    let order = |a: &u8, b: &u8| far(a).total_cmp(&far(b)).then((a & 1).cmp(&(b & 1)));
    sign | codes.min_by(order).unwrap()
}

/// As [`fp8`], which tries all codes: the few around the number.
pub(crate) fn fast_fp8(number: f32) -> u8 {
    let magnitude = number.abs();
    if magnitude.is_nan() || magnitude >= 448.0 {
        return fp8(number);
    }
    let (mut low, mut high) = (0_u8, 0x7e_u8);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let below = fp8_value(middle) <= f64::from(magnitude);
        (low, high) = if below { (middle, high) } else { (low, middle) };
    }
    let number_64 = f64::from(magnitude);
    let (down, up) = (number_64 - fp8_value(low), fp8_value(high) - number_64);
    let up = up < down || (up == down && low & 1 == 1);
    (number.to_bits() >> 24) as u8 & 0x80 | if up { high } else { low }
}

/// Numbers of all kinds: mostly usual ones, some tiny, huge, infinite, or no numbers at all.
pub(crate) fn any_number(rng: &mut Rng) -> f32 {
    let bits = rng.next();
    let usual = (bits as u32 as f32 / u32::MAX as f32 - 0.5) * 16.0;
    match bits >> 40 & 0xff {
        0 => f32::from_bits(bits as u32),
        1 => f32::NAN,
        2 => -f32::NAN,
        3 => f32::INFINITY,
        4 => f32::NEG_INFINITY,
        5 => -0.0,
        6 => 0.0,
        7..=20 => usual * 1e-6,
        21..=30 => usual * 1e-40,
        31..=40 => usual * 100.0,
        _ => usual,
    }
}

pub(crate) fn finite_number(rng: &mut Rng) -> f32 {
    (rng.next() as u32 as f32 / u32::MAX as f32 - 0.5) * 8.0
}

pub(crate) fn cpu(threads: usize, isa: Isa) -> Cpu {
    Cpu::new(&CpuConfig { threads: Some(threads), cores: None, isa: Some(isa) }).unwrap()
}

/// A CPU for every instruction set there is; says which are not.
pub(crate) fn cpus(threads: usize) -> Vec<Cpu> {
    let (here, missing): (Vec<_>, Vec<_>) =
        Isa::ALL.into_iter().partition(|isa| isa.is_available());
    for isa in missing {
        println!("skipped: this processor has no {isa}");
    }
    here.into_iter().map(|isa| cpu(threads, isa)).collect()
}

/// The field that an error names.
pub(crate) fn field(result: Result<()>) -> &'static str {
    match result {
        Err(Error::InvalidArgument { field, .. }) => field,
        other => panic!("{other:?} names no field"),
    }
}
