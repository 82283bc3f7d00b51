//! What the arithmetic units do when nothing else limits them, and a BLAS.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::ThreadPool;

use crate::data::time;

/// Chains of dependent operations: enough for any processor's latency and ports.
const CHAINS: usize = 12;
const TURNS: usize = 1 << 21;

/// Multiply-adds between registers; the loop's name, and GFLOP/s of all threads.
pub(crate) fn fma(pool: &ThreadPool) -> f64 {
    let (kernel, lanes): (fn(), usize) = match () {
        #[cfg(target_arch = "x86_64")]
        () if is_x86_feature_detected!("avx512f") => (x86::avx512, 16),
        #[cfg(target_arch = "x86_64")]
        () if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") => (x86::avx2, 8),
        #[cfg(target_arch = "aarch64")]
        () if std::arch::is_aarch64_feature_detected!("neon") => (arm::neon, 4),
        () => (plain, 8),
    };
    let spent = time(|| drop(pool.broadcast(|_| kernel())));
    flops(pool, 2 * lanes) / spent
}

/// Dot products of bf16 pairs between registers; `None` where the processor has none.
pub(crate) fn dot_bf16(pool: &ThreadPool) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f") {
        let spent = time(|| drop(pool.broadcast(|_| x86::dot_bf16())));
        return Some(flops(pool, 64) / spent);
    }
    let _ = pool;
    None
}

fn flops(pool: &ThreadPool, each: usize) -> f64 {
    (pool.current_num_threads() * CHAINS * TURNS * each) as f64 / 1e9
}

/// Multiplies and adds as the compiler vectorises them.
fn plain() {
    let (x, y) = (black_box(0.999_f32), black_box(1e-3_f32));
    let mut sums = [[0.0_f32; 8]; CHAINS];
    for _ in 0..TURNS {
        for sum in sums.as_flattened_mut() {
            *sum = *sum * x + y;
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{CHAINS, TURNS, black_box};

    macro_rules! peak {
        ($name:ident, $feature:literal, |$sum:ident, $x:ident, $y:ident| $step:expr, $zero:expr,
         $bits:expr) => {
            pub(super) fn $name() {
                #[target_feature(enable = $feature)]
                fn kernel() {
                    let ($x, $y) = (black_box($bits), black_box($bits));
                    let mut sums = [$zero; CHAINS];
                    for _ in 0..TURNS {
                        for sum in &mut sums {
                            let $sum = *sum;
                            *sum = $step;
                        }
                    }
                    black_box(sums);
                }
                // SAFETY: the caller has looked for the features.
                unsafe { kernel() }
            }
        };
    }

    peak!(
        avx2,
        "avx2,fma",
        |sum, x, y| _mm256_fmadd_ps(sum, x, y),
        _mm256_setzero_ps(),
        _mm256_set1_ps(0.5)
    );
    peak!(
        avx512,
        "avx512f",
        |sum, x, y| _mm512_fmadd_ps(sum, x, y),
        _mm512_setzero_ps(),
        _mm512_set1_ps(0.5)
    );
    peak!(
        dot_bf16,
        "avx512f,avx512bf16",
        |sum, x, y| _mm512_dpbf16_ps(sum, x, y),
        _mm512_setzero_ps(),
        halves()
    );

    /// Pairs of bf16 1/2.
    fn halves() -> __m512bh {
        // SAFETY: both are plain bits of the same size.
        unsafe { std::mem::transmute([0x3f00_u16; 32]) }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::{CHAINS, TURNS, black_box};

    pub(super) fn neon() {
        #[target_feature(enable = "neon")]
        fn kernel() {
            let (x, y) = (black_box(vdupq_n_f32(0.5)), black_box(vdupq_n_f32(0.5)));
            // Half the registers: both multiply-add units of larger cores need more than 12.
            let mut sums = [vdupq_n_f32(0.0); CHAINS];
            for _ in 0..TURNS {
                for sum in &mut sums {
                    *sum = vfmaq_f32(y, *sum, x);
                }
            }
            black_box(sums);
        }
        // SAFETY: the caller has looked for the feature.
        unsafe { kernel() }
    }
}

/// `cblas_sgemm`, with `isize` standing for the integer type: 32-bit libraries read the lower half.
pub(crate) type Sgemm = unsafe extern "C" fn(
    i32,
    i32,
    i32,
    isize,
    isize,
    isize,
    f32,
    *const f32,
    isize,
    *const f32,
    isize,
    f32,
    *mut f32,
    isize,
);

/// C = A B in f32, row-major and square, rows divided among the pool's threads.
pub(crate) struct Gemm {
    n: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    blas: Option<Sgemm>,
}

struct Out(*mut f32);
// SAFETY: threads write rows of their own.
unsafe impl Sync for Out {}

impl Gemm {
    /// Of `n` rows and columns, by `matrixmultiply` or by a library's function.
    pub(crate) fn new(n: usize, blas: Option<Sgemm>) -> Self {
        let a: Vec<f32> = (0..n * n).map(|i| (i * 7919 % 1000) as f32 / 1000.0 - 0.5).collect();
        Self { n, b: a.clone(), c: vec![0.0; n * n], a, blas }
    }

    pub(crate) fn name(&self) -> &'static str {
        if self.blas.is_some() { "BLAS f32 GEMM" } else { "matrixmultiply f32" }
    }

    /// GFLOP/s.
    pub(crate) fn run(&mut self, pool: &ThreadPool) -> f64 {
        let n = self.n;
        let threads = pool.current_num_threads();
        // Two pieces a thread: one that is held up does not double the time.
        let rows = if threads == 1 { n } else { n.div_ceil(2 * threads).next_multiple_of(32) };
        let next = AtomicUsize::new(0);
        let out = Out(self.c.as_mut_ptr());
        let (a, b, blas) = (&self.a, &self.b, self.blas);
        let work = || {
            let out = &out;
            loop {
                let row = next.fetch_add(rows, Ordering::Relaxed);
                if row >= n {
                    break;
                }
                let m = rows.min(n - row);
                let a = &a[row * n..(row + m) * n];
                // SAFETY: rows `row..row + m` of C, which only this turn of the loop has taken.
                let c = unsafe { out.0.add(row * n) };
                let (a, b, s) = (a.as_ptr(), b.as_ptr(), n.cast_signed());
                match blas {
                    // SAFETY: A is m x n, B n x n, C m x n, all row-major (101), as is (111).
                    Some(sgemm) => unsafe {
                        sgemm(101, 111, 111, m.cast_signed(), s, s, 1.0, a, s, b, s, 0.0, c, s);
                    },
                    // SAFETY: as above.
                    None => unsafe {
                        matrixmultiply::sgemm(m, n, n, 1.0, a, s, 1, b, s, 1, 0.0, c, s, 1);
                    },
                }
            }
        };
        let spent = time(|| drop(pool.broadcast(|_| work())));
        black_box(&self.c);
        2.0 * (n as f64).powi(3) / spent / 1e9
    }
}

/// Finds `cblas_sgemm` in a shared library and keeps its own threads out of the way.
///
/// # Errors
/// A sentence that names the file.
#[cfg(unix)]
pub(crate) fn load(path: &str) -> Result<Sgemm, String> {
    use std::ffi::CString;
    let file = CString::new(path).map_err(|_| format!("--blas {path}: no path has a NUL"))?;
    // SAFETY: the user names a library whose initialisers may run.
    let library = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW) };
    if library.is_null() {
        return Err(format!("--blas {path}: no shared library that can be loaded here"));
    }
    let find = |name: &str| {
        let name = CString::new(name).expect("it has no NUL");
        // SAFETY: the library stays loaded.
        let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
        (!symbol.is_null()).then_some(symbol)
    };
    let around = [("", ""), ("", "64_"), ("scipy_", ""), ("scipy_", "64_")];
    for (before, after) in around {
        if let Some(set) = find(&format!("{before}openblas_set_num_threads{after}")) {
            // SAFETY: OpenBLAS declares it so.
            let set: unsafe extern "C" fn(i32) = unsafe { std::mem::transmute(set) };
            // SAFETY: as above; the pool's threads call it each on its own.
            unsafe { set(1) };
        }
    }
    let sgemm =
        around.iter().find_map(|(before, after)| find(&format!("{before}cblas_sgemm{after}")));
    let sgemm = sgemm.ok_or_else(|| format!("--blas {path}: it has no cblas_sgemm"))?;
    // SAFETY: the C interface of BLAS; see `Sgemm` for its integers.
    Ok(unsafe { std::mem::transmute::<*mut libc::c_void, Sgemm>(sgemm) })
}

#[cfg(not(unix))]
pub(crate) fn load(path: &str) -> Result<Sgemm, String> {
    Err(format!("--blas {path}: libraries are loaded on Unix only"))
}
