//! Attention in memory of the caller's, which several share.

use inflight::Error;
use inflight::device::cuda::CudaBuffer;
use inflight::kernels::cuda::{Attention, Fusion, StepBuffer};
use inflight::kernels::{AttentionConfig, DType, StepArrays, Workspace};

use crate::attention::{Case, Spec};
use crate::gpu::{self, OnDevice};

/// Attentions of several shapes on one stream, each run beginning when the one before ends: no
/// state is read that the run has not written, and counters of one are no states of another.
#[test]
fn attentions_on_one_stream_share_one() {
    let Some(gpu) = gpu::gpu() else { return };
    let rows = [(1, 900), (2, 300), (40, 400), (1, 3)];
    let plain = AttentionConfig::new(8, 2, 64, DType::Bf16);
    let wide = AttentionConfig::new(12, 1, 128, DType::F16);
    let configs = [plain, wide, AttentionConfig { fixed_split: Some(128), ..plain }];
    let cases = configs.map(|config| Case::new(&Spec::new(5, config, &rows)));
    let limits = gpu::limits(&cases[0]);
    for fusion in [Fusion::Never, Fusion::Always] {
        let sizes = configs
            .map(|config| Attention::workspace_bytes(&gpu.cuda, &config, &limits, fusion).unwrap());
        let most = sizes.into_iter().max().unwrap();
        let memory = CudaBuffer::new(&gpu.cuda, most).unwrap();
        // SAFETY: it lives until all work is done, and one stream orders the runs.
        let workspace = unsafe { Workspace::new(memory.address(), most) };
        let make = |config, shared: bool| match shared {
            false => Attention::with_fusion(&gpu.cuda, config, limits, fusion),
            true => Attention::with_workspace(&gpu.cuda, config, limits, fusion, workspace),
        };
        let answers = [false, true].map(|shared| {
            let mut all = configs.map(|config| make(config, shared).unwrap());
            let mut steps = Vec::new();
            for (attention, case) in all.iter_mut().zip(&cases) {
                attention.plan(case.batch(), case.cache.layout.num_blocks, None).unwrap();
                let merges: usize = attention.parts().map(|plan| plan.merges().len()).iter().sum();
                assert!(merges > 0, "nothing is split");
                let mut step = StepBuffer::new(&gpu.cuda, limits, &[&*attention]).unwrap();
                let batch = case.batch();
                let arrays = StepArrays::new(batch);
                step.upload(&gpu.stream, &arrays, &[&*attention]).unwrap();
                steps.push(step);
            }
            let memory = cases.each_ref().map(|case| OnDevice::new(&gpu, case));
            for at in [0, 1, 2, 1, 0, 2] {
                gpu.set_seed(at as u64 + 1);
                // SAFETY: all memory lives until the stream is done.
                unsafe { all[at].run(&gpu.stream, &steps[at], 0, &memory[at].args) }.unwrap();
            }
            let each = memory.iter().zip(&cases);
            each.map(|(memory, case)| memory.answer(&gpu, case)).collect::<Vec<_>>()
        });
        let [own, shared] = answers;
        for (at, (own, shared)) in own.iter().zip(&shared).enumerate() {
            assert!(own.bits() == shared.bits(), "{fusion:?}: attention {at}");
        }
        assert_eq!(gpu.reports(), Vec::<String>::new(), "{fusion:?}");
    }
}

#[test]
fn what_is_no_workspace_is_refused() {
    let Some(gpu) = gpu::gpu() else { return };
    let config = AttentionConfig::new(8, 2, 64, DType::Bf16);
    let limits = gpu::limits(&Case::new(&Spec::new(5, config, &[(1, 900)])));
    let fusion = Fusion::default();
    let needed = Attention::workspace_bytes(&gpu.cuda, &config, &limits, fusion).unwrap();
    let memory = CudaBuffer::new(&gpu.cuda, needed).unwrap();
    let make = |address, bytes| {
        // SAFETY: no run uses it.
        let workspace = unsafe { Workspace::new(address, bytes) };
        Attention::with_workspace(&gpu.cuda, config, limits, fusion, workspace)
    };
    assert!(make(memory.address(), needed).is_ok());
    for (address, bytes, name) in [
        (memory.address(), needed - 1, "workspace.bytes"),
        (memory.address() + 8, needed, "workspace"),
        (0, needed, "workspace"),
        (u64::MAX - 15, needed, "workspace"),
    ] {
        match make(address, bytes) {
            Err(Error::InvalidArgument { field, .. }) => assert_eq!(field, name),
            other => panic!("{address:#x} of {bytes}: {other:?}"),
        }
    }
}
