//! The processor, as tests of every backend see it.

use inflight::device::Stream;
use inflight::device::cpu::Cpu;
use inflight::kernels::{Backend, DType};

use crate::attention::{Answer, Case, TokenLayout};
use crate::cpus;
use crate::layer::{Layer, MakeLayer, Place};

pub(crate) const DIMS: &[usize] = &[8, 64, 72, 80, 96, 112, 128, 192, 256];
pub(crate) const GROUPS: &[usize] = &[1, 3, 4, 5, 7, 8, 16];
pub(crate) const TYPES: &[(DType, DType)] = &[
    (DType::F32, DType::F32),
    (DType::F16, DType::F16),
    (DType::Bf16, DType::Bf16),
    (DType::F32, DType::Fp8E4m3),
    (DType::F16, DType::Fp8E4m3),
    (DType::Bf16, DType::Fp8E4m3),
];
pub(crate) const TOKEN_LAYOUTS: &[TokenLayout] =
    &[TokenLayout::Contiguous, TokenLayout::Packed, TokenLayout::Odd, TokenLayout::HeadMajor];
/// Random cases, and the products of one, at most: the oracle's time.
pub(crate) const CASES: usize = 300;
pub(crate) const MOST_WORK: usize = 6_000_000;
/// Query heads a KV head of cases made by hand.
pub(crate) const BY_HAND: &[usize] = &[1];

pub(crate) fn is_there() -> bool {
    true
}

/// What each of the processors answers; turn by turn with another number of threads.
pub(crate) fn answers(case: &mut Case, turn: usize) -> Vec<(String, Answer)> {
    let name =
        |cpu: &inflight::device::cpu::Cpu| format!("{}, {} threads", cpu.isa(), cpu.threads());
    cpus::each(turn).map(|cpu| (name(cpu), case.answer(cpu))).collect()
}

/// Type and head dimension of a scheduler's steps.
pub(crate) const STEPS_TYPE: DType = DType::F32;
pub(crate) const STEPS_DIM: usize = 16;

/// A layer on each of the processors.
pub(crate) fn layers(turn: usize) -> Vec<MakeLayer> {
    let make = |cpu: &'static Cpu| -> MakeLayer {
        Box::new(move |config, limits| Layer::new(Box::new(cpu), config, limits).expect("a layer"))
    };
    cpus::each(turn).map(make).collect()
}

impl Place for &'static Cpu {
    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn backend(&self) -> Backend {
        Backend::new(*self)
    }

    fn stream(&self) -> Stream<'_> {
        None
    }
}
