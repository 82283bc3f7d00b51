//! Which code runs where: one entry for each instruction set and cache type.

use super::gemm::{Pairs, Single};
use super::part::{self, Call, Scratch};
use super::simd::{Bf16, F16, F32, Fp8, Portable, PortableBf16};
use crate::device::cpu::Isa;
use crate::kernels::DType;
use crate::plan::{Merge, Part};

/// Runs a part. Unsafe as [`part::run`] is, and the processor must have the instructions.
pub(super) type RunPart = unsafe fn(&Call<'_>, &Part, &mut Scratch);

/// Merges a tile. Unsafe as [`part::merge`] is, and the processor must have the instructions.
pub(super) type RunMerge = unsafe fn(&Call<'_>, &Merge);

/// The code for an instruction set, queries of `q` and a cache of `kv`.
pub(super) fn entries(isa: Isa, q: DType, kv: DType) -> (RunPart, RunMerge) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 if q == DType::Bf16 && kv == DType::Bf16 => {
            (avx512_bf16::pairs, avx512::merge)
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 if q == DType::Bf16 && kv == DType::Fp8E4m3 => {
            (avx512_bf16::pairs_fp8, avx512::merge)
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 | Isa::Avx512 => (avx512::part(kv), avx512::merge),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (avx2::part(kv), avx2::merge),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => (neon::part(kv), neon::merge),
        Isa::PortableBf16 if q == DType::Bf16 && kv == DType::Bf16 => {
            (portable_bf16::pairs, portable16::merge)
        }
        Isa::PortableBf16 if q == DType::Bf16 && kv == DType::Fp8E4m3 => {
            (portable_bf16::pairs_fp8, portable16::merge)
        }
        Isa::PortableBf16 => (portable16::part(kv), portable16::merge),
        // Others do not exist on this target, and `Cpu` refused them.
        _ => (portable::part(kv), portable::merge),
    }
}

/// A function of one instruction set: its features, its vectors, and the block of its micro-kernel.
macro_rules! entry {
    ($name:ident, $(#[$feature:meta])*, $simd:expr, $element:ty, $format:ty, $mr:expr, $nv:expr) => {
        $(#[$feature])*
        pub(super) unsafe fn $name(call: &Call<'_>, part: &Part, scratch: &mut Scratch) {
            let simd = $simd;
            // SAFETY: the caller vouches for the features and for the call.
            unsafe { part::run::<_, $element, $format, $mr, $nv>(simd, call, part, scratch) }
        }
    };
}

/// All functions of an instruction set.
macro_rules! isa {
    ($module:ident, $(#[$feature:meta])*, $simd:expr, $mr:expr, $nv:expr) => {
        mod $module {
            use super::*;

            entry!(f32, $(#[$feature])*, $simd, F32, Single, $mr, $nv);
            entry!(f16, $(#[$feature])*, $simd, F16, Single, $mr, $nv);
            entry!(bf16, $(#[$feature])*, $simd, Bf16, Single, $mr, $nv);
            entry!(fp8, $(#[$feature])*, $simd, Fp8, Single, $mr, $nv);

            pub(super) fn part(kv: DType) -> RunPart {
                match kv {
                    DType::F32 => f32,
                    DType::F16 => f16,
                    DType::Bf16 => bf16,
                    DType::Fp8E4m3 => fp8,
                }
            }

            $(#[$feature])*
            pub(super) unsafe fn merge(call: &Call<'_>, merge: &Merge) {
                let simd = $simd;
                // SAFETY: the caller vouches for the features and for the call.
                unsafe { part::merge(simd, call, merge) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
isa!(
    avx2,
    #[target_feature(enable = "avx2,fma,f16c")],
    // SAFETY: the function is called only where the features are.
    unsafe { super::super::simd::Avx2::new() },
    6,
    2
);

#[cfg(target_arch = "x86_64")]
isa!(
    avx512,
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")],
    // SAFETY: the function is called only where the features are.
    unsafe { super::super::simd::Avx512::new() },
    12,
    2
);

/// Dot products of pairs: [`Isa::Avx512Bf16`] with queries of bf16.
#[cfg(target_arch = "x86_64")]
mod avx512_bf16 {
    use super::*;

    entry!(
        pairs,
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")],
        // SAFETY: the function is called only where the features are.
        unsafe { super::super::simd::Avx512Bf16::new() },
        Bf16,
        Pairs,
        12,
        2
    );
    entry!(
        pairs_fp8,
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")],
        // SAFETY: the function is called only where the features are.
        unsafe { super::super::simd::Avx512Bf16::new() },
        Fp8,
        Pairs,
        12,
        2
    );
}

#[cfg(target_arch = "aarch64")]
isa!(
    neon,
    #[target_feature(enable = "neon")],
    // SAFETY: the function is called only where the features are.
    unsafe { super::super::simd::Neon::new() },
    6,
    4
);

isa!(portable, , Portable::default(), 4, 2);

// As `avx512` and `avx512_bf16`, in plain Rust.
isa!(portable16, , PortableBf16::default(), 4, 2);

/// Dot products of pairs: [`Isa::PortableBf16`] with queries of bf16.
mod portable_bf16 {
    use super::*;

    entry!(pairs, , PortableBf16::default(), Bf16, Pairs, 4, 2);
    entry!(pairs_fp8, , PortableBf16::default(), Fp8, Pairs, 4, 2);
}
