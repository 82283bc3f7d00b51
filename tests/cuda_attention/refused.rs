//! What is refused: the field named, nothing written.

use inflight::Error;
use inflight::kernels::cuda::{Attention, Fusion, StepArrays, StepBuffer};
use inflight::kernels::{AttentionConfig, DType};

use crate::attention::{Case, Spec};
use crate::gpu::{self, Gpu, OnDevice};

fn field<T>(result: inflight::Result<T>) -> &'static str {
    match result {
        Err(Error::InvalidArgument { field, .. }) => field,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was accepted"),
    }
}

fn new(gpu: &Gpu, config: AttentionConfig) -> inflight::Result<Attention> {
    let case = Case::new(&Spec::new(1, AttentionConfig::new(2, 1, 64, DType::F16), &[(1, 9)]));
    Attention::new(&gpu.cuda, config, gpu::limits(&case))
}

#[test]
fn configurations_without_a_kernel() {
    let Some(gpu) = gpu::gpu() else { return };
    let config = |heads, dim, dtype| AttentionConfig::new(heads, 1, dim, dtype);
    assert_eq!(field(new(&gpu, config(2, 72, DType::F16))), "head_dim");
    assert_eq!(field(new(&gpu, config(2, 64, DType::F32))), "q_dtype");
    assert_eq!(field(new(&gpu, config(129, 64, DType::F16))), "num_q_heads");
    assert!(new(&gpu, config(128, 64, DType::Bf16)).is_ok());
    let case = Case::new(&Spec::new(1, config(2, 64, DType::F16), &[(1, 9)]));
    let always =
        |config| Attention::with_fusion(&gpu.cuda, config, gpu::limits(&case), Fusion::Always);
    // Blocks of 128 and of 256 threads; and rows that are all of one kind.
    assert_eq!(field(always(config(2, 192, DType::F16))), "fusion");
    assert_eq!(field(always(config(17, 64, DType::F16))), "fusion");
    assert!(always(config(16, 128, DType::F16)).is_ok());
}

#[test]
fn calls_that_do_not_fit() {
    let Some(gpu) = gpu::gpu() else { return };
    let config = AttentionConfig::new(4, 2, 64, DType::Bf16);
    let case = Case::new(&Spec::new(3, config, &[(1, 40), (5, 20)]));
    let mut attention = Attention::new(&gpu.cuda, config, gpu::limits(&case)).unwrap();
    let mut step = StepBuffer::new(&gpu.cuda, *attention.limits(), &[&attention]).unwrap();
    let device = OnDevice::new(&gpu, &case);
    let arrays = StepArrays { batch: case.batch(), slot_mapping: &[], positions: &[], tokens: &[] };
    let blocks = case.cache.layout.num_blocks;

    // SAFETY: all memory lives until the stream is done.
    assert_eq!(field(unsafe { attention.run(&gpu.stream, &step, 0, &device.args) }), "plan");
    assert_eq!(field(step.upload(&gpu.stream, &arrays, &[&attention])), "groups");
    attention.plan(case.batch(), blocks, None).unwrap();
    // SAFETY: all memory lives until the stream is done.
    assert_eq!(field(unsafe { attention.run(&gpu.stream, &step, 0, &device.args) }), "step");
    step.upload(&gpu.stream, &arrays, &[&attention]).unwrap();
    // SAFETY: all memory lives until the stream is done.
    assert_eq!(field(unsafe { attention.run(&gpu.stream, &step, 1, &device.args) }), "step");

    let other = Case::new(&Spec::new(4, AttentionConfig::new(4, 2, 128, DType::Bf16), &[(6, 60)]));
    let theirs = OnDevice::new(&gpu, &other).args;
    let mut args = device.args;
    args.q = theirs.q;
    // SAFETY: all memory lives until the stream is done.
    assert_eq!(field(unsafe { attention.run(&gpu.stream, &step, 0, &args) }), "q");
    args = device.args;
    args.cache = theirs.cache;
    // SAFETY: all memory lives until the stream is done.
    assert_eq!(field(unsafe { attention.run(&gpu.stream, &step, 0, &args) }), "cache");
    args = device.args;
    args.lse += 2;
    // SAFETY: all memory lives until the stream is done.
    assert_eq!(field(unsafe { attention.run(&gpu.stream, &step, 0, &args) }), "lse");

    let larger = Case::new(&Spec::new(5, config, &[(1, 4000), (5, 20)]));
    let refused = attention.plan(larger.batch(), larger.cache.layout.num_blocks, None);
    assert_eq!(field(refused), "limits");
    // SAFETY: all memory lives until the stream is done.
    assert_eq!(field(unsafe { attention.run(&gpu.stream, &step, 0, &device.args) }), "plan");
    let slots = StepArrays { slot_mapping: &[1, 2], ..arrays };
    assert_eq!(field(step.upload(&gpu.stream, &slots, &[])), "slot_mapping");

    // Nothing of all that was written.
    let poison = device.answer(&gpu, &case);
    assert!(poison.o.iter().chain(&poison.lse).all(|x| x.is_nan()));
}
