//! Numbers of a type that is chosen at run time, in memory of their own.

use half::{bf16, f16};
use inflight::device::memory::Buffer;
use inflight::kernels::tensor::{Element, Shape};
use inflight::kernels::{DType, Fp8E4m3, TensorMut, TensorRef};
use inflight::{Error, Result};

/// Elements in a row.
#[derive(Debug)]
pub(crate) struct Tensor {
    dtype: DType,
    len: usize,
    data: Buffer,
}

/// Runs `$body` with `$type` standing for the Rust type of a dtype that tensors of tokens have.
macro_rules! typed {
    ($dtype:expr, $type:ident => $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $type = f32;
                $body
            }
            DType::F16 => {
                type $type = f16;
                $body
            }
            DType::Bf16 => {
                type $type = bf16;
                $body
            }
            DType::Fp8E4m3 => {
                type $type = Fp8E4m3;
                $body
            }
        }
    };
}

impl Tensor {
    /// `len` zeros.
    ///
    /// # Errors
    /// There is no such memory.
    pub(crate) fn zeros(dtype: DType, len: usize) -> Result<Self> {
        let bytes = len.checked_mul(dtype.size()).ok_or_else(|| no_memory(len, dtype))?;
        Ok(Self { dtype, len, data: Buffer::zeroed(bytes)? })
    }

    /// Numbers rounded to the type.
    ///
    /// # Errors
    /// There is no such memory.
    pub(crate) fn from_numbers(
        dtype: DType,
        numbers: impl ExactSizeIterator<Item = f64>,
    ) -> Result<Self> {
        let mut tensor = Self::zeros(dtype, numbers.len())?;
        numbers.enumerate().for_each(|(at, number)| tensor.set(at, number));
        Ok(tensor)
    }

    /// Elements.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// An element, exactly.
    pub(crate) fn get(&self, at: usize) -> f64 {
        match self.dtype {
            DType::F32 => f64::from(self.slice::<f32>()[at]),
            DType::F16 => self.slice::<f16>()[at].to_f64(),
            DType::Bf16 => self.slice::<bf16>()[at].to_f64(),
            DType::Fp8E4m3 => f64::from(self.slice::<Fp8E4m3>()[at].to_f32()),
        }
    }

    /// Rounds a number into an element.
    pub(crate) fn set(&mut self, at: usize, number: f64) {
        match self.dtype {
            DType::F32 => self.slice_mut::<f32>()[at] = number as f32,
            DType::F16 => self.slice_mut::<f16>()[at] = f16::from_f64(number),
            DType::Bf16 => self.slice_mut::<bf16>()[at] = bf16::from_f64(number),
            DType::Fp8E4m3 => {
                self.slice_mut::<Fp8E4m3>()[at] = Fp8E4m3::from_f32(number as f32);
            }
        }
    }

    /// All bytes of its elements.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.data[..self.len * self.dtype.size()]
    }

    /// All bytes of its elements, to write: a KV cache is made of them.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let bytes = self.len * self.dtype.size();
        &mut self.data[..bytes]
    }

    /// Tokens of heads from element `start` on.
    ///
    /// # Errors
    /// They are not all there.
    pub(crate) fn tokens(&self, start: usize, shape: Shape) -> Result<TensorRef<'_>> {
        let start = start.min(self.len);
        typed!(self.dtype, T => TensorRef::new(&self.slice::<T>()[start..], shape))
    }

    /// Tokens of heads from element `start` on, to write.
    ///
    /// # Errors
    /// They are not all there.
    pub(crate) fn tokens_mut(&mut self, start: usize, shape: Shape) -> Result<TensorMut<'_>> {
        let start = start.min(self.len);
        typed!(self.dtype, T => TensorMut::new(&mut self.slice_mut::<T>()[start..], shape))
    }

    fn slice<T: Element>(&self) -> &[T] {
        bytemuck::cast_slice(self.bytes())
    }

    fn slice_mut<T: Element>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.bytes_mut())
    }
}

fn no_memory(len: usize, dtype: DType) -> Error {
    Error::Device(format!("{len} numbers of {dtype} do not fit any memory"))
}

/// Bytes this machine could still give; `None` where the system does not say.
pub(crate) fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_as_they_are_rounded() {
        let numbers = [0.0, 1.0, -0.5, 0.1, 448.0];
        for dtype in DType::ALL {
            let tensor = Tensor::from_numbers(dtype, numbers.into_iter()).unwrap();
            assert_eq!((tensor.len(), tensor.bytes().len()), (5, 5 * dtype.size()));
            let found: Vec<f64> = (0..5).map(|at| tensor.get(at)).collect();
            let error = (found[3] - 0.1).abs();
            assert!(error < 0.01 && found[..3] == numbers[..3] && found[4] == 448.0, "{found:?}");
            assert!(tensor.tokens(0, Shape::contiguous(5, 1, 1)).is_ok());
            assert!(tensor.tokens(1, Shape::contiguous(5, 1, 1)).is_err());
        }
        assert!(Tensor::zeros(DType::F32, usize::MAX / 2).is_err());
    }
}
