//! Which code runs where: a table of kernels for each instruction set and cache type.
//!
//! Each kernel is compiled once for an instruction set, as a function with its features; what calls
//! them is compiled once for all.

#![expect(clippy::too_many_arguments, reason = "operands, each with its stride")]
#![expect(clippy::type_complexity, reason = "the types are the functions' own")]

use super::dot::{self, Ahead};
use super::finish;
use super::gemm::{self, Format, Into, Pairs, Rows, Single};
use super::simd::{Bf16, F16, F32, FiniteFp8, Fp8, KvElement, Portable, PortableBf16, Simd};
use super::softmax::{self, Logits, RowView, Scores};
use crate::device::cpu::Isa;
use crate::kernels::DType;

/// Unsafe as [`dot::scores`] is.
pub(super) type Score =
    unsafe fn(*const f32, usize, usize, Rows<'_>, usize, &mut Ahead<'_>, *mut f32);

/// Unsafe as [`dot::values`] is.
pub(super) type Weigh =
    unsafe fn(*const f32, *const f32, usize, Rows<'_>, usize, &mut Ahead<'_>, *mut f32, usize);

/// Kernels for rows without NaN, and how to tell.
#[derive(Debug)]
pub(super) struct Finite {
    pub(super) any_nan: unsafe fn(Rows<'_>, usize) -> bool,
    pub(super) scores: Score,
    pub(super) values: Weigh,
}

/// The kernels of one instruction set for one type of cache. All are unsafe as the functions that
/// they are named after, and the processor must have the instructions.
#[derive(Debug)]
pub(super) struct Kernels {
    /// Numbers per vector.
    pub(super) lanes: usize,
    /// Rows and columns of a transposed block.
    pub(super) tile: usize,
    /// Elements per word.
    pub(super) depth: usize,
    /// Rows of the micro-kernel.
    pub(super) block_rows: usize,
    /// Columns of the micro-kernel.
    pub(super) panel: usize,
    /// Whether keys read in place come in even places first, then odd ones.
    pub(super) split_keys: bool,
    /// Whether values do.
    pub(super) split_values: bool,
    /// What loads leave out.
    pub(super) unit: f32,
    pub(super) load_query: unsafe fn(DType, *const u8, usize, *mut f32, usize),
    pub(super) scores: Score,
    pub(super) values: Weigh,
    /// Faster ones for rows without NaN, where telling them is not free.
    pub(super) finite: Option<Finite>,
    pub(super) ask_rest: unsafe fn(&mut Ahead<'_>),
    pub(super) pack_k: unsafe fn(Rows<'_>, usize, &mut [f32], *mut f32),
    pub(super) pack_v: unsafe fn(Rows<'_>, usize, usize, *mut f32),
    pub(super) multiply: unsafe fn(usize, usize, *const f32, *const f32, *mut f32, usize, Into),
    pub(super) narrow: unsafe fn(*mut f32, usize, usize, usize, usize),
    pub(super) softmax:
        unsafe fn(&Logits<'_>, &[RowView], Scores, &mut [f32], &mut [f32], *mut f32),
    pub(super) accumulate: unsafe fn(*const f32, f32, usize, *mut f32),
    pub(super) write_row: unsafe fn(*const f32, f32, usize, DType, *mut u8),
}

/// The kernels for an instruction set, queries of `q` and a cache of `kv`.
pub(super) fn kernels(isa: Isa, q: DType, kv: DType) -> &'static Kernels {
    let pairs = q == DType::Bf16 && matches!(kv, DType::Bf16 | DType::Fp8E4m3);
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 if pairs => avx512_bf16::kernels(kv),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 | Isa::Avx512 => avx512::kernels(kv),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::kernels(kv),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => neon::kernels(kv),
        Isa::PortableBf16 if pairs => portable_bf16::kernels(kv),
        Isa::PortableBf16 => portable16::kernels(kv),
        // Others do not exist on this target, and `Cpu` refused them.
        _ => portable::kernels(kv),
    }
}

/// The kernels of an instruction set: its features, its vectors, the block of its micro-kernel,
/// and the types of cache with their operands.
macro_rules! isa {
    (
        $module:ident,
        #[$features:meta],
        $simd:ty = $new:expr,
        $mr:expr, $nv:expr,
        $($name:ident: $dtype:pat => $element:ty, $format:ty $(, finite $finite:ident)?;)*
    ) => {
        mod $module {
            use super::*;

            type S = $simd;

            pub(super) fn kernels(kv: DType) -> &'static Kernels {
                #[allow(unreachable_patterns, reason = "some tables have all types")]
                match kv {
                    $($dtype => &$name::KERNELS,)*
                    _ => unreachable!("`kernels` asks for pairs only where there are some"),
                }
            }

            /// Proof of the features, for functions that have them.
            #[inline(always)]
            fn simd() -> S {
                $new
            }

            #[$features]
            unsafe fn softmax(
                logits: &Logits<'_>,
                rows: &[RowView],
                scores: Scores,
                largest: &mut [f32],
                sum: &mut [f32],
                factors: *mut f32,
            ) {
                // SAFETY: the caller guarantees it.
                unsafe { softmax::softmax(simd(), logits, rows, scores, largest, sum, factors) }
            }

            #[$features]
            #[allow(dead_code, reason = "only caches of fp8 ask")]
            unsafe fn any_nan(rows: Rows<'_>, head_dim: usize) -> bool {
                // SAFETY: the caller guarantees it.
                unsafe { dot::any_nan(simd(), rows, head_dim) }
            }

            #[$features]
            unsafe fn ask_rest(next: &mut Ahead<'_>) {
                next.ask_rest(simd());
            }

            #[$features]
            unsafe fn accumulate(from: *const f32, weight: f32, head_dim: usize, to: *mut f32) {
                // SAFETY: the caller guarantees it.
                unsafe { finish::accumulate(simd(), from, weight, head_dim, to) }
            }

            #[$features]
            unsafe fn write_row(
                from: *const f32,
                scale: f32,
                head_dim: usize,
                dtype: DType,
                to: *mut u8,
            ) {
                // SAFETY: the caller guarantees it.
                unsafe { finish::write_row(simd(), from, scale, head_dim, dtype, to) }
            }

            $(mod $name {
                use super::*;

                type E = $element;
                type F = $format;

                pub(super) static KERNELS: Kernels = Kernels {
                    lanes: S::LANES,
                    tile: S::TILE,
                    depth: <F as Format<S, E>>::DEPTH,
                    block_rows: $mr,
                    panel: $nv * S::LANES,
                    split_keys: <F as Format<S, E>>::SPLIT,
                    split_values: E::SPLIT,
                    unit: E::UNIT,
                    load_query,
                    scores,
                    values,
                    finite: isa!(finite $($finite)?),
                    ask_rest,
                    pack_k,
                    pack_v,
                    multiply,
                    narrow,
                    softmax,
                    accumulate,
                    write_row,
                };

                #[$features]
                unsafe fn load_query(
                    dtype: DType,
                    from: *const u8,
                    head_dim: usize,
                    to: *mut f32,
                    stride: usize,
                ) {
                    // SAFETY: the caller guarantees it.
                    unsafe {
                        finish::load_query::<S, E, F>(simd(), dtype, from, head_dim, to, stride);
                    }
                }

                #[$features]
                unsafe fn scores(
                    q: *const f32,
                    stride: usize,
                    rows: usize,
                    keys: Rows<'_>,
                    head_dim: usize,
                    next: &mut Ahead<'_>,
                    out: *mut f32,
                ) {
                    // SAFETY: the caller guarantees it.
                    unsafe {
                        dot::scores::<S, E, F>(
                            simd(), q, stride, rows, keys, head_dim, next, out,
                        );
                    }
                }

                #[$features]
                unsafe fn values(
                    p: *const f32,
                    factors: *const f32,
                    rows: usize,
                    keys: Rows<'_>,
                    head_dim: usize,
                    next: &mut Ahead<'_>,
                    out: *mut f32,
                    stride: usize,
                ) {
                    // SAFETY: the caller guarantees it.
                    unsafe {
                        dot::values::<S, E>(
                            simd(), p, factors, rows, keys, head_dim, next, out, stride,
                        );
                    }
                }

                #[$features]
                unsafe fn pack_k(
                    rows: Rows<'_>,
                    head_dim: usize,
                    staging: &mut [f32],
                    out: *mut f32,
                ) {
                    // SAFETY: the caller guarantees it.
                    unsafe { gemm::pack_k::<S, E, F, $nv>(simd(), rows, head_dim, staging, out) }
                }

                #[$features]
                unsafe fn pack_v(
                    rows: Rows<'_>,
                    head_dim: usize,
                    capacity: usize,
                    out: *mut f32,
                ) {
                    // SAFETY: the caller guarantees it.
                    unsafe { gemm::pack_v::<S, E, F, $nv>(simd(), rows, head_dim, capacity, out) }
                }

                #[$features]
                unsafe fn multiply(
                    rows: usize,
                    depth: usize,
                    a: *const f32,
                    b: *const f32,
                    c: *mut f32,
                    c_stride: usize,
                    into: Into,
                ) {
                    // SAFETY: the caller guarantees it.
                    unsafe {
                        gemm::multiply::<S, E, F, $mr, $nv>(
                            simd(), rows, depth, a, b, c, c_stride, into,
                        );
                    }
                }

                #[$features]
                unsafe fn narrow(
                    data: *mut f32,
                    rows: usize,
                    stride: usize,
                    start: usize,
                    end: usize,
                ) {
                    // SAFETY: the caller guarantees it.
                    unsafe { gemm::narrow::<S, E, F>(simd(), data, rows, stride, start, end) }
                }
            })*
        }
    };
    (finite) => { None };
    (finite $module:ident) => {
        Some(Finite {
            any_nan,
            scores: super::$module::KERNELS.scores,
            values: super::$module::KERNELS.values,
        })
    };
}

#[cfg(target_arch = "x86_64")]
isa!(
    avx2,
    #[target_feature(enable = "avx2,fma,f16c")],
    super::super::simd::Avx2 =
        // SAFETY: only functions with the features ask, which are called only where they are.
        unsafe { super::super::simd::Avx2::new() },
    6, 2,
    single: DType::F32 => F32, Single;
    half: DType::F16 => F16, Single;
    brain: DType::Bf16 => Bf16, Single;
    eight: DType::Fp8E4m3 => Fp8, Single, finite finite_eight;
    finite_eight: _ => FiniteFp8, Single;
);

#[cfg(target_arch = "x86_64")]
isa!(
    avx512,
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")],
    super::super::simd::Avx512 =
        // SAFETY: only functions with the features ask, which are called only where they are.
        unsafe { super::super::simd::Avx512::new() },
    12, 2,
    single: DType::F32 => F32, Single;
    half: DType::F16 => F16, Single;
    brain: DType::Bf16 => Bf16, Single;
    eight: DType::Fp8E4m3 => Fp8, Single, finite finite_eight;
    finite_eight: _ => FiniteFp8, Single;
);

#[cfg(target_arch = "x86_64")]
isa!(
    avx512_bf16,
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")],
    super::super::simd::Avx512Bf16 =
        // SAFETY: only functions with the features ask, which are called only where they are.
        unsafe { super::super::simd::Avx512Bf16::new() },
    12, 2,
    brain: DType::Bf16 => Bf16, Pairs;
    eight: DType::Fp8E4m3 => Fp8, Pairs;
);

#[cfg(target_arch = "aarch64")]
isa!(
    neon,
    #[target_feature(enable = "neon")],
    super::super::simd::Neon =
        // SAFETY: only functions with the features ask, which are called only where they are.
        unsafe { super::super::simd::Neon::new() },
    6, 4,
    single: DType::F32 => F32, Single;
    half: DType::F16 => F16, Single;
    brain: DType::Bf16 => Bf16, Single;
    eight: DType::Fp8E4m3 => Fp8, Single, finite finite_eight;
    finite_eight: _ => FiniteFp8, Single;
);

isa!(
    portable,
    #[inline(never)],
    Portable = Portable::default(),
    6, 2,
    single: DType::F32 => F32, Single;
    half: DType::F16 => F16, Single;
    brain: DType::Bf16 => Bf16, Single;
    eight: DType::Fp8E4m3 => Fp8, Single;
);

// What `avx512` does, in plain Rust.
isa!(
    portable16,
    #[inline(never)],
    PortableBf16 = PortableBf16::default(),
    12, 2,
    single: DType::F32 => F32, Single;
    half: DType::F16 => F16, Single;
    brain: DType::Bf16 => Bf16, Single;
    eight: DType::Fp8E4m3 => Fp8, Single, finite finite_eight;
    finite_eight: _ => FiniteFp8, Single;
);

isa!(
    portable_bf16,
    #[inline(never)],
    PortableBf16 = PortableBf16::default(),
    12, 2,
    brain: DType::Bf16 => Bf16, Pairs;
    eight: DType::Fp8E4m3 => Fp8, Pairs;
);
