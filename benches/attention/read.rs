//! Ways to read memory as fast as it goes.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::ThreadPool;

/// What a thread takes at a time: small enough that a thread held up leaves the rest to others, as
/// it does in the kernels.
const PIECE: usize = 4 << 20;
#[cfg(target_arch = "x86_64")]
const PAGE: usize = 4096;
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Reads a piece and returns some function of all its bytes.
type Reader = fn(&[u8]) -> u64;

/// A way to read.
#[derive(Clone, Copy)]
pub(crate) struct Method {
    pub(crate) name: &'static str,
    reader: Reader,
}

impl Method {
    /// Reads everything once, on all threads of the pool.
    pub(crate) fn read(&self, pool: &ThreadPool, data: &[u8]) -> u64 {
        let next = AtomicUsize::new(0);
        let sums = pool.broadcast(|_| {
            let mut sum = 0;
            loop {
                let start = next.fetch_add(PIECE, Ordering::Relaxed);
                let Some(piece) = data.get(start..data.len().min(start + PIECE)) else { break };
                if piece.is_empty() {
                    break;
                }
                sum ^= (self.reader)(piece);
            }
            sum
        });
        sums.into_iter().fold(0, |a, b| a ^ b)
    }
}

fn words(data: &[u8]) -> u64 {
    let (chunks, _) = data.as_chunks::<64>();
    let mut sums = [0u64; 8];
    for chunk in chunks {
        for (sum, word) in sums.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *sum ^= u64::from_ne_bytes(*word);
        }
    }
    sums.into_iter().fold(0, |a, b| a ^ b)
}

/// All ways this processor has.
pub(crate) fn methods() -> Vec<Method> {
    let mut methods = vec![Method { name: "plain Rust", reader: words }];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") {
            methods.extend(avx2::METHODS);
        }
        if is_x86_feature_detected!("avx512f") {
            methods.extend(avx512::METHODS);
        }
    }
    methods
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch<const HINT: i32>(at: *const i8) {
    #[allow(unused_unsafe, reason = "later versions of Rust have it safe")]
    // SAFETY: a prefetch may name any address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<HINT>(at);
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! readers {
    ($module:ident, $isa:literal, $feature:literal, $vector:ty, $zero:ident, $load:ident,
     $stream:ident, $xor:ident) => {
        mod $module {
            use std::arch::x86_64::*;

            use super::{LINE, Method, PAGE, prefetch};

            const WIDTH: usize = size_of::<$vector>();
            /// Loads before the loop turns.
            const UNROLL: usize = 8;

            pub(super) const METHODS: [Method; 12] = [
                Method { name: concat!($isa, " loads"), reader: |data| row::<0, false>(data) },
                Method {
                    name: concat!($isa, " loads, prefetch 256 B"),
                    reader: |data| row::<256, false>(data),
                },
                Method {
                    name: concat!($isa, " loads, prefetch 512 B"),
                    reader: |data| row::<512, false>(data),
                },
                Method {
                    name: concat!($isa, " loads, prefetch 1 KiB"),
                    reader: |data| row::<1024, false>(data),
                },
                Method {
                    name: concat!($isa, " loads, prefetch 2 KiB"),
                    reader: |data| row::<2048, false>(data),
                },
                Method {
                    name: concat!($isa, " loads, prefetch 4 KiB"),
                    reader: |data| row::<4096, false>(data),
                },
                Method {
                    name: concat!($isa, " NT loads, prefetch 1 KiB"),
                    reader: |data| row::<1024, true>(data),
                },
                Method { name: concat!($isa, ", 2 streams"), reader: |data| pages::<2, 0>(data) },
                Method { name: concat!($isa, ", 4 streams"), reader: |data| pages::<4, 0>(data) },
                Method { name: concat!($isa, ", 8 streams"), reader: |data| pages::<8, 0>(data) },
                Method {
                    name: concat!($isa, ", 2 streams, prefetch 2 pages"),
                    reader: |data| pages::<2, 1>(data),
                },
                Method {
                    name: concat!($isa, ", 4 streams, prefetch 4 pages"),
                    reader: |data| pages::<4, 1>(data),
                },
            ];

            fn row<const PREFETCH: usize, const NT: bool>(data: &[u8]) -> u64 {
                // SAFETY: the list of methods holds these only if the processor has the feature.
                unsafe { row_of::<PREFETCH, NT>(data) }
            }

            fn pages<const STREAMS: usize, const AHEAD: usize>(data: &[u8]) -> u64 {
                // SAFETY: as above.
                unsafe { pages_of::<STREAMS, AHEAD>(data) }
            }

            /// One stream; prefetches some bytes ahead unless that is 0.
            #[target_feature(enable = $feature)]
            fn row_of<const PREFETCH: usize, const NT: bool>(data: &[u8]) -> u64 {
                let mut sums = [$zero(); UNROLL];
                for chunk in data.chunks_exact(UNROLL * WIDTH) {
                    let start = chunk.as_ptr();
                    if PREFETCH > 0 {
                        for at in (0..UNROLL * WIDTH).step_by(LINE) {
                            let ahead = start.wrapping_add(PREFETCH + at).cast();
                            if NT {
                                prefetch::<_MM_HINT_NTA>(ahead);
                            } else {
                                prefetch::<_MM_HINT_T0>(ahead);
                            }
                        }
                    }
                    for (i, sum) in sums.iter_mut().enumerate() {
                        let at = start.wrapping_add(i * WIDTH).cast::<$vector>();
                        let loaded = if NT {
                            // SAFETY: inside the chunk; pieces of a buffer are aligned to 64 bytes.
                            unsafe { $stream(at.cast()) }
                        } else {
                            // SAFETY: as above.
                            unsafe { $load(at.cast()) }
                        };
                        *sum = $xor(*sum, loaded);
                    }
                }
                fold(sums)
            }

            /// Some pages at once, a line of each in turn, each page from another line on so that
            /// they do not meet in the same set of the cache.
            #[target_feature(enable = $feature)]
            fn pages_of<const STREAMS: usize, const AHEAD: usize>(data: &[u8]) -> u64 {
                let mut sums = [$zero(); UNROLL];
                for group in data.chunks_exact(STREAMS * PAGE) {
                    let start = group.as_ptr();
                    for line in 0..PAGE / LINE {
                        for stream in 0..STREAMS {
                            let shifted = (line + stream * (PAGE / LINE / STREAMS)) % (PAGE / LINE);
                            let at = start.wrapping_add(stream * PAGE + shifted * LINE);
                            if AHEAD > 0 {
                                let ahead = at.wrapping_add(AHEAD * STREAMS * PAGE).cast();
                                prefetch::<_MM_HINT_T0>(ahead);
                            }
                            for part in 0..LINE / WIDTH {
                                let at = at.wrapping_add(part * WIDTH);
                                // SAFETY: inside the group, and aligned as above.
                                let loaded = unsafe { $load(at.cast()) };
                                let sum = &mut sums[(stream * (LINE / WIDTH) + part) % UNROLL];
                                *sum = $xor(*sum, loaded);
                            }
                        }
                    }
                }
                fold(sums)
            }

            #[target_feature(enable = $feature)]
            fn fold(sums: [$vector; UNROLL]) -> u64 {
                // SAFETY: both are plain bits of the same size.
                let words: [u64; UNROLL * WIDTH / 8] = unsafe { std::mem::transmute(sums) };
                words.into_iter().fold(0, |a, b| a ^ b)
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
readers!(
    avx2,
    "AVX2",
    "avx2",
    __m256i,
    _mm256_setzero_si256,
    _mm256_load_si256,
    _mm256_stream_load_si256,
    _mm256_xor_si256
);
#[cfg(target_arch = "x86_64")]
readers!(
    avx512,
    "AVX-512",
    "avx512f",
    __m512i,
    _mm512_setzero_si512,
    _mm512_load_si512,
    _mm512_stream_load_si512,
    _mm512_xor_si512
);
