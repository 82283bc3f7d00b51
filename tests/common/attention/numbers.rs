//! Numbers of a type known at run time, and tensors of tokens made of them.

use half::{bf16, f16};
use inflight::kernels::tensor::Shape;
use inflight::kernels::{DType, Fp8E4m3, TensorMut, TensorRef};

use super::spec::TokenLayout;

/// Half of the distance between a number and the next, relative to the number.
pub(crate) fn unit_roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(f32::EPSILON) / 2.0,
        DType::F16 => 0.5_f64.powi(11),
        DType::Bf16 => 0.5_f64.powi(8),
        DType::Fp8E4m3 => 0.5_f64.powi(4),
    }
}

/// What a type makes of a number.
pub(crate) fn rounded(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F32 => x,
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::Bf16 => bf16::from_f32(x).to_f32(),
        DType::Fp8E4m3 => e4m3(Fp8E4m3::from_f32(x).0),
    }
}

/// From the definition: sign, 4 bits of exponent (bias 7), 3 of mantissa; 0x7f is NaN.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match exponent {
        _ if code & 0x7f == 0x7f => f32::NAN,
        0 => mantissa * 2.0_f32.powi(-9),
        _ => (8.0 + mantissa) * 2.0_f32.powi(exponent - 10),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Numbers in memory that starts at a multiple of 16 bytes.
#[derive(Clone)]
pub(crate) struct Numbers {
    chunks: Vec<u128>,
    dtype: DType,
}

impl Numbers {
    /// `len` numbers, every byte of them this one.
    pub(crate) fn filled(dtype: DType, len: usize, byte: u8) -> Self {
        let chunks = (len * dtype.size()).div_ceil(16);
        Self { chunks: vec![u128::from_ne_bytes([byte; 16]); chunks], dtype }
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.chunks)
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.chunks)
    }

    pub(crate) fn get(&self, at: usize) -> f32 {
        let bytes = self.bytes();
        let pair = || [bytes[2 * at], bytes[2 * at + 1]];
        match self.dtype {
            DType::F32 => bytemuck::cast_slice::<_, f32>(&self.chunks)[at],
            DType::F16 => f16::from_ne_bytes(pair()).to_f32(),
            DType::Bf16 => bf16::from_ne_bytes(pair()).to_f32(),
            DType::Fp8E4m3 => e4m3(bytes[at]),
        }
    }

    /// Rounds to the type; an fp8 number beyond the largest becomes the largest.
    pub(crate) fn set(&mut self, at: usize, x: f32) {
        let dtype = self.dtype;
        let bytes = self.bytes_mut();
        match dtype {
            DType::F32 => bytes[4 * at..][..4].copy_from_slice(&x.to_ne_bytes()),
            DType::F16 => bytes[2 * at..][..2].copy_from_slice(&f16::from_f32(x).to_ne_bytes()),
            DType::Bf16 => bytes[2 * at..][..2].copy_from_slice(&bf16::from_f32(x).to_ne_bytes()),
            DType::Fp8E4m3 => bytes[at] = Fp8E4m3::from_f32(x).0,
        }
    }

    /// Makes every byte of a number this one.
    pub(crate) fn poison(&mut self, at: usize, byte: u8) {
        let size = self.dtype.size();
        self.bytes_mut()[at * size..][..size].fill(byte);
    }
}

/// Byte that makes a NaN of every type.
pub(crate) const NAN: u8 = 0xff;

/// `[tokens, heads, head_dim]` in one of many arrangements, NaN between the rows.
#[derive(Clone)]
pub(crate) struct Tokens {
    pub(crate) numbers: Numbers,
    pub(crate) shape: Shape,
    /// The first element: views need not start at a multiple of 16 bytes.
    start: usize,
}

impl Tokens {
    pub(crate) fn new(
        dtype: DType,
        layout: TokenLayout,
        tokens: usize,
        heads: usize,
        head_dim: usize,
    ) -> Self {
        let (start, tokens, token_stride, head_stride) = match layout {
            TokenLayout::Contiguous => (0, tokens, heads * head_dim, head_dim),
            TokenLayout::Packed => (head_dim, tokens, (heads + 2) * head_dim, head_dim),
            // More tokens than the batch has, and no alignment but that of an element.
            TokenLayout::Odd => (1, tokens + 2, heads * (head_dim + 3) + 1, head_dim + 3),
            TokenLayout::Gaps => {
                let gap = 16 / dtype.size();
                (gap, tokens + 2, heads * (head_dim + gap) + 3 * gap, head_dim + gap)
            }
            TokenLayout::HeadMajor => (0, tokens, head_dim, (tokens + 1) * head_dim),
        };
        let shape = Shape { tokens, heads, head_dim, token_stride, head_stride };
        let len = start + tokens.max(1) * token_stride + heads * head_stride + head_dim;
        Self { numbers: Numbers::filled(dtype, len, NAN), shape, start }
    }

    pub(crate) fn at(&self, token: usize, head: usize, d: usize) -> usize {
        self.start + token * self.shape.token_stride + head * self.shape.head_stride + d
    }

    pub(crate) fn get(&self, token: usize, head: usize, d: usize) -> f32 {
        self.numbers.get(self.at(token, head, d))
    }

    pub(crate) fn set(&mut self, token: usize, head: usize, d: usize, x: f32) {
        let at = self.at(token, head, d);
        self.numbers.set(at, x);
    }

    /// A head of a token.
    pub(crate) fn row(&self, token: usize, head: usize) -> Vec<f32> {
        (0..self.shape.head_dim).map(|d| self.get(token, head, d)).collect()
    }

    pub(crate) fn view(&self) -> TensorRef<'_> {
        let bytes = &self.numbers.bytes()[self.start * self.numbers.dtype.size()..];
        match self.numbers.dtype {
            DType::F32 => TensorRef::new::<f32>(bytemuck::cast_slice(bytes), self.shape),
            DType::F16 => TensorRef::new::<f16>(bytemuck::cast_slice(bytes), self.shape),
            DType::Bf16 => TensorRef::new::<bf16>(bytemuck::cast_slice(bytes), self.shape),
            DType::Fp8E4m3 => TensorRef::new::<Fp8E4m3>(bytemuck::cast_slice(bytes), self.shape),
        }
        .expect("it holds its shape")
    }

    pub(crate) fn view_mut(&mut self) -> TensorMut<'_> {
        let (dtype, shape) = (self.numbers.dtype, self.shape);
        let bytes = &mut self.numbers.bytes_mut()[self.start * dtype.size()..];
        match dtype {
            DType::F32 => TensorMut::new::<f32>(bytemuck::cast_slice_mut(bytes), shape),
            DType::F16 => TensorMut::new::<f16>(bytemuck::cast_slice_mut(bytes), shape),
            DType::Bf16 => TensorMut::new::<bf16>(bytemuck::cast_slice_mut(bytes), shape),
            DType::Fp8E4m3 => TensorMut::new::<Fp8E4m3>(bytemuck::cast_slice_mut(bytes), shape),
        }
        .expect("it holds its shape")
    }

    /// All numbers of the first tokens, in order; what is left of the memory must be poison.
    pub(crate) fn take(&self, tokens: usize) -> Vec<f32> {
        let (mut rest, mut all) = (self.numbers.clone(), Vec::new());
        for token in 0..tokens {
            for head in 0..self.shape.heads {
                for d in 0..self.shape.head_dim {
                    all.push(self.get(token, head, d));
                    rest.poison(self.at(token, head, d), NAN);
                }
            }
        }
        assert!(rest.bytes().iter().all(|&byte| byte == NAN), "written outside of the output");
        all
    }

    pub(crate) fn dtype(&self) -> DType {
        self.numbers.dtype
    }

    /// All memory, poison included.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.numbers.bytes()
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.numbers.bytes_mut()
    }

    /// Where the first element begins.
    pub(crate) fn start_bytes(&self) -> usize {
        self.start * self.numbers.dtype.size()
    }

    pub(crate) fn is_untouched(&self) -> bool {
        self.numbers.bytes().iter().all(|&byte| byte == NAN)
    }
}
