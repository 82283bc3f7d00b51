//! Element types, and views of token tensors.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use half::{bf16, f16};

use crate::error::{Error, Result};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// OCP 8-bit float: 4 bits of exponent, 3 of mantissa, no infinities, largest 448.
    Fp8E4m3,
}

impl DType {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Fp8E4m3];

    /// Bytes per element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Fp8E4m3 => 1,
        }
    }

    /// Its usual short name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Fp8E4m3 => "fp8-e4m3",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            Error::argument("dtype", format!("`{name}` is not one of {known}"))
        })
    }
}

/// The bits of an e4m3 number; see [`DType::Fp8E4m3`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Fp8E4m3(pub u8);

impl Fp8E4m3 {
    /// The largest number.
    pub const MAX: f32 = 448.0;

    /// Rounds to nearest, ties to even; what is too large becomes the largest, NaN stays NaN.
    #[must_use]
    #[inline(always)]
    pub fn from_f32(value: f32) -> Self {
        let sign = value.to_bits() >> 24 & 0x80;
        // Bits of magnitudes are ordered as they are, as signed integers too; NaN is the greatest.
        let bits = (value.to_bits() & 0x7fff_ffff) as i32;
        let bounded = bits.min(Self::MAX.to_bits() as i32);
        // Steps are 2^(e - 3) from 2^e on, and below 2^-6 as from there: added to 2^(e + 20), a
        // number leaves just as many as it has of them, rounded, in the lowest bits.
        let power = (bounded.max((127 - 6) << 23) & 0x7f80_0000) + (20 << 23);
        let sum = f32::from_bits(bounded as u32) + f32::from_bits(power as u32);
        let steps = sum.to_bits() as i32 - power;
        // A number of 8 steps has its exponent up by 1, which makes e = -6 the exponent 0 here.
        let code = steps + (power >> 20) - ((127 + 14) << 3);
        // NaN was bounded to the largest, one below.
        let code = code + i32::from(bits > 0x7f80_0000);
        Self((sign as i32 | code) as u8)
    }

    /// Exact.
    #[must_use]
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        let code = u32::from(self.0);
        let magnitude = code & 0x7f;
        // The same bits in f32's places are the number times 2^-120, subnormals included.
        let scaled = f32::from_bits(magnitude << 20) * f32::from_bits((127 + 120) << 23);
        let bits = if magnitude == 0x7f { 0x7fc0_0000 } else { scaled.to_bits() };
        f32::from_bits(bits | (code & 0x80) << 24)
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A type that tensors hold.
pub trait Element: bytemuck::Pod + Send + Sync + sealed::Sealed {
    /// Its name at run time.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($type:ty => $dtype:ident),*) => {$(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}
elements!(f32 => F32, f16 => F16, bf16 => Bf16, Fp8E4m3 => Fp8E4m3);

/// `[tokens, heads, head_dim]` of a tensor whose last dimension is contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Tokens.
    pub tokens: usize,
    /// Heads.
    pub heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Elements from one token to the next.
    pub token_stride: usize,
    /// Elements from one head to the next.
    pub head_stride: usize,
}

impl Shape {
    /// Nothing between the rows.
    #[must_use]
    pub fn contiguous(tokens: usize, heads: usize, head_dim: usize) -> Self {
        Self {
            tokens,
            heads,
            head_dim,
            token_stride: heads.saturating_mul(head_dim),
            head_stride: head_dim,
        }
    }

    /// Elements from the first to one past the last; `None` beyond 64 bits.
    fn extent(&self) -> Option<usize> {
        if self.tokens == 0 || self.heads == 0 {
            return Some(0);
        }
        let tokens = (self.tokens - 1).checked_mul(self.token_stride)?;
        let heads = (self.heads - 1).checked_mul(self.head_stride)?;
        tokens.checked_add(heads)?.checked_add(self.head_dim)
    }

    /// Checks heads and head dimension, and that there are `tokens` tokens at least.
    pub(crate) fn check_holds(
        &self,
        field: &'static str,
        tokens: usize,
        heads: usize,
        head_dim: usize,
    ) -> Result<()> {
        let Self { tokens: has, heads: h, head_dim: d, .. } = *self;
        let wrong = if h != heads || d != head_dim {
            format!("has {h} heads of {d} elements, not {heads} of {head_dim}")
        } else if has < tokens {
            format!("has {has} tokens, and the batch has {tokens}")
        } else {
            return Ok(());
        };
        Err(Error::argument(field, wrong))
    }

    /// Whether no two elements share a place.
    pub(crate) fn is_disjoint(&self) -> bool {
        disjoint(self.head_dim, [(self.tokens, self.token_stride), (self.heads, self.head_stride)])
    }

    fn check(&self, len: usize) -> Result<()> {
        match self.extent() {
            Some(extent) if extent <= len => Ok(()),
            Some(extent) => {
                let reason = format!("{len} elements are given and the shape takes {extent}");
                Err(Error::argument("shape", reason))
            }
            None => Err(Error::argument("shape", "its extent does not fit 64 bits")),
        }
    }
}

/// Whether rows of `inner` elements, repeated along `dims` of (count, stride), never overlap.
pub(crate) fn disjoint<const N: usize>(inner: usize, mut dims: [(usize, usize); N]) -> bool {
    dims.sort_unstable_by_key(|&(_, stride)| stride);
    let mut span = inner;
    for (count, stride) in dims {
        if count > 1 {
            if stride < span {
                return false;
            }
            span = (count - 1).saturating_mul(stride).saturating_add(span);
        }
    }
    true
}

macro_rules! view {
    ($(#[$doc:meta])* $name:ident, $slice:ty, $ptr:ty, $as_ptr:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name<'a> {
            data: $ptr,
            dtype: DType,
            shape: Shape,
            borrow: PhantomData<$slice>,
        }

        // SAFETY: a view is a borrowed slice, and the elements are plain numbers.
        unsafe impl Send for $name<'_> {}
        // SAFETY: as above.
        unsafe impl Sync for $name<'_> {}

        impl<'a> $name<'a> {
            /// A view of memory that another language owns.
            ///
            /// # Safety
            /// Every element of `shape` lies in memory valid for as long as the view lives, for
            /// reads and, if the view is mutable, for writes by this view alone; the shape's extent in
            /// bytes is below `isize::MAX`.
            #[must_use]
            pub unsafe fn from_raw(data: $ptr, dtype: DType, shape: Shape) -> Self {
                Self { data, dtype, shape, borrow: PhantomData }
            }

            /// The type of its elements.
            #[must_use]
            pub fn dtype(&self) -> DType {
                self.dtype
            }

            /// Its shape.
            #[must_use]
            pub fn shape(&self) -> Shape {
                self.shape
            }

            /// The first element.
            pub(crate) fn as_ptr(&self) -> $ptr {
                self.data
            }

            /// Bytes from one token to the next; any number where there is one token.
            pub(crate) fn token_bytes(&self) -> usize {
                self.shape.token_stride.wrapping_mul(self.dtype.size())
            }

            /// Bytes from one head to the next; any number where there is one head.
            pub(crate) fn head_bytes(&self) -> usize {
                self.shape.head_stride.wrapping_mul(self.dtype.size())
            }

            /// Checks type, heads and head dimension, and that there are `tokens` tokens at least.
            pub(crate) fn check(
                &self,
                field: &'static str,
                dtype: DType,
                tokens: usize,
                heads: usize,
                head_dim: usize,
            ) -> Result<()> {
                if self.dtype != dtype {
                    return Err(Error::argument(field, format!("is {}, not {dtype}", self.dtype)));
                }
                self.shape.check_holds(field, tokens, heads, head_dim)
            }
        }
    };
}

view!(
    /// Tokens of heads, to read: queries, new keys and values, partial outputs.
    TensorRef,
    &'a [u8],
    *const u8,
    as_ptr
);

view!(
    /// Tokens of heads, to write: outputs.
    TensorMut,
    &'a mut [u8],
    *mut u8,
    as_mut_ptr
);

impl Clone for TensorRef<'_> {
    fn clone(&self) -> Self {
        *self
    }
}

impl Copy for TensorRef<'_> {}

impl<'a> TensorRef<'a> {
    /// A view of a slice.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `shape` when the slice does not hold it.
    pub fn new<T: Element>(data: &'a [T], shape: Shape) -> Result<Self> {
        shape.check(data.len())?;
        Ok(Self { data: data.as_ptr().cast(), dtype: T::DTYPE, shape, borrow: PhantomData })
    }
}

impl<'a> TensorMut<'a> {
    /// A view of a slice.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `shape` when the slice does not hold it or rows overlap.
    pub fn new<T: Element>(data: &'a mut [T], shape: Shape) -> Result<Self> {
        shape.check(data.len())?;
        let view =
            Self { data: data.as_mut_ptr().cast(), dtype: T::DTYPE, shape, borrow: PhantomData };
        view.check_disjoint("shape")?;
        Ok(view)
    }

    /// Refuses rows that overlap: threads write them at the same time.
    pub(crate) fn check_disjoint(&self, field: &'static str) -> Result<()> {
        if self.shape.is_disjoint() {
            return Ok(());
        }
        Err(Error::argument(field, "its strides make rows overlap"))
    }
}

/// Tokens of heads by their address in a device's memory: queries, outputs, new keys and values.
///
/// A processor's memory is the process's, and an address there one that a pointer was exposed as
/// (`expose_provenance`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceTensor {
    address: u64,
    dtype: DType,
    shape: Shape,
}

impl DeviceTensor {
    /// The tensor whose first element is at `address`.
    ///
    /// # Safety
    /// Until all work that is queued with it is done, and whenever a graph that such work was
    /// recorded in is launched, every element of `shape` lies in memory that the device can reach,
    /// aligned as its type asks for, for reads, and where it is written for writes by nothing else.
    #[must_use]
    pub unsafe fn new(address: u64, dtype: DType, shape: Shape) -> Self {
        Self { address, dtype, shape }
    }

    /// The address of its first element.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The type of its elements.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Its shape.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }
}
