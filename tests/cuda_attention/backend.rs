//! The GPU, as tests of every backend see it.

use inflight::device::Stream;
use inflight::kernels::{Backend, DType};

use crate::attention::{Answer, Case, TokenLayout};
use crate::gpu::{self, Gpu};
use crate::layer::{Layer, MakeLayer, Place};

pub(crate) const DIMS: &[usize] = inflight::kernels::cuda::HEAD_DIMS;
pub(crate) const GROUPS: &[usize] = &[1, 3, 4, 5, 7, 8, 16];
pub(crate) const TYPES: &[(DType, DType)] = &gpu::TYPES;
/// Tensors begin, and strides are, at multiples of 16 bytes.
pub(crate) const TOKEN_LAYOUTS: &[TokenLayout] =
    &[TokenLayout::Contiguous, TokenLayout::Packed, TokenLayout::Gaps, TokenLayout::HeadMajor];
/// Random cases, and the products of one, at most: the emulator's time.
pub(crate) const CASES: usize = 300;
pub(crate) const MOST_WORK: usize = 6_000_000;
/// Query heads a KV head of cases made by hand: few for one kernel, many for the other.
pub(crate) const BY_HAND: &[usize] = &[1, 32];

pub(crate) fn is_there() -> bool {
    gpu::gpu().is_some()
}

/// What the GPU answers, with another order of its threads each turn.
pub(crate) fn answers(case: &mut Case, turn: usize) -> Vec<(String, Answer)> {
    let Some(gpu) = gpu::gpu() else { return Vec::new() };
    gpu.set_seed(turn as u64);
    let answer = gpu::answer(&gpu, case);
    assert_eq!(gpu.reports(), Vec::<String>::new(), "{:?}", case.spec);
    vec![("GPU".into(), answer)]
}

/// Type and head dimension of a scheduler's steps.
pub(crate) const STEPS_TYPE: DType = DType::F16;
pub(crate) const STEPS_DIM: usize = 64;

/// A layer on the GPU.
pub(crate) fn layers(turn: usize) -> Vec<MakeLayer> {
    let make: MakeLayer = Box::new(move |config, limits| {
        let gpu = gpu::gpu().expect("it was there");
        gpu.set_seed(turn as u64);
        Layer::new(Box::new(gpu), config, limits).expect("a layer")
    });
    if is_there() { vec![make] } else { Vec::new() }
}

impl Place for Gpu {
    fn name(&self) -> String {
        self.cuda.info().name.clone()
    }

    fn backend(&self) -> Backend {
        Backend::new(&self.cuda)
    }

    fn stream(&self) -> Stream<'_> {
        Some(&self.stream)
    }

    fn check(&self) {
        assert_eq!(self.reports(), Vec::<String>::new());
    }
}
