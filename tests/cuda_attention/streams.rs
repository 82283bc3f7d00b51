//! Several streams, attentions and steps at a time, and uploads far ahead of their use.

use inflight::device::cuda::CudaStream;
use inflight::kernels::cuda::{Attention, StepArrays, StepBuffer};
use inflight::kernels::{AttentionConfig, DType};

use crate::attention::{Answer, Case, MaskKind, Sinks, Spec, judge, naive, oracle};
use crate::gpu::{self, Gpu, OnDevice, mask};
use crate::rng::Rng;

/// One model's attention on a stream of its own: every step's results go to their own memory.
struct Lane {
    stream: CudaStream,
    attention: Attention,
    step: StepBuffer,
    queued: Vec<(Case, OnDevice)>,
}

impl Lane {
    fn new(gpu: &Gpu, largest: &Case) -> Self {
        let stream = CudaStream::new(&gpu.cuda).unwrap();
        let config = largest.spec.config;
        let attention = Attention::new(&gpu.cuda, config, gpu::limits(largest)).unwrap();
        let step = StepBuffer::new(&gpu.cuda, *attention.limits(), &[&attention]).unwrap();
        Self { stream, attention, step, queued: Vec::new() }
    }

    /// Plans, uploads and runs without a wait.
    fn queue(&mut self, gpu: &Gpu, case: Case) {
        // Written on another stream, as that waits.
        let memory = OnDevice::new(gpu, &case);
        let blocks = case.cache.layout.num_blocks;
        self.attention.plan(case.batch(), blocks, mask(&case)).unwrap();
        let batch = case.batch();
        let arrays = StepArrays { batch, slot_mapping: &[], positions: &[], tokens: &[] };
        self.step.upload(&self.stream, &arrays, &[&self.attention]).unwrap();
        // SAFETY: all memory lives until the stream is done.
        unsafe { self.attention.run(&self.stream, &self.step, 0, &memory.args) }.unwrap();
        self.queued.push((case, memory));
    }

    fn check(&mut self) -> usize {
        self.stream.synchronize().unwrap();
        for (n, (case, memory)) in self.queued.iter().enumerate() {
            let found: Answer = memory.try_answer(&self.stream, case).unwrap();
            let verdict = judge(case, &oracle(case), &naive(case, None), &found);
            verdict.unwrap_or_else(|why| panic!("step {n}: {why}"));
        }
        std::mem::take(&mut self.queued).len()
    }
}

/// Few rows and many keys, so that there are merges, or chunks.
fn spec(rng: &mut Rng, config: AttentionConfig, masked: bool) -> Spec {
    let rows: Vec<_> = (0..rng.within(0, 4))
        .map(|_| {
            let kv_len = rng.pick(&[0, 1, 15, 16, 17, 64, 129, 700]);
            (rng.pick(&[0, 1, 1, 3, 40]), kv_len)
        })
        .collect();
    Spec {
        sinks: rng.pick(&[Sinks::None, Sinks::Usual]),
        mask: if masked { rng.pick(&[MaskKind::Tree, MaskKind::Full]) } else { MaskKind::None },
        ..Spec::new(rng.next(), config, &rows)
    }
}

fn limits_for(config: AttentionConfig, masked: bool) -> Case {
    let mask = if masked { MaskKind::Full } else { MaskKind::None };
    Case::new(&Spec { mask, ..Spec::new(1, config, &[(41, 900); 4]) })
}

#[test]
fn two_streams_take_turns() {
    let Some(gpu) = gpu::gpu() else { return };
    let mut rng = Rng::new(8);
    let plain = AttentionConfig::new(8, 2, 64, DType::Bf16);
    let mut other = AttentionConfig::new(6, 1, 128, DType::F16);
    other.kv_dtype = DType::Fp8E4m3;
    // The same kernels in two objects too: counters and states are each one's own.
    let kinds = [(plain, false), (plain, true), (other, true)];
    let mut lanes: Vec<Lane> = kinds
        .iter()
        .map(|&(config, masked)| Lane::new(&gpu, &limits_for(config, masked)))
        .collect();
    let mut checked = 0;
    for round in 0..6 {
        gpu.set_seed(round);
        for _ in 0..8 {
            let at = rng.below(lanes.len());
            let (config, masked) = kinds[at];
            let case = Case::new(&spec(&mut rng, config, masked));
            lanes[at].queue(&gpu, case);
            // Of whichever stream some work goes on now.
            for _ in 0..rng.below(4) {
                let at = rng.below(lanes.len());
                lanes[at].stream.is_done().unwrap();
            }
        }
        let first = rng.below(lanes.len());
        for at in 0..lanes.len() {
            checked += lanes[(first + at) % kinds.len()].check();
        }
        assert_eq!(gpu.reports(), Vec::<String>::new());
    }
    println!("{checked} steps on {} streams", lanes.len());
}

/// Far more steps than there are page-locked buffers, none of which has been waited for.
#[test]
fn uploads_go_ahead_of_the_device() {
    let Some(gpu) = gpu::gpu() else { return };
    let config = AttentionConfig::new(4, 1, 64, DType::F16);
    let mut rng = Rng::new(9);
    let mut lane = Lane::new(&gpu, &limits_for(config, false));
    for _ in 0..40 {
        lane.queue(&gpu, Case::new(&spec(&mut rng, config, false)));
    }
    assert_eq!(lane.check(), 40);
    assert_eq!(gpu.reports(), Vec::<String>::new());
}

/// One plan over many layers, run again and again: counters are 0 after each launch.
#[test]
fn layers_share_states_and_counters() {
    let Some(gpu) = gpu::gpu() else { return };
    let mut config = AttentionConfig::new(8, 2, 64, DType::Bf16);
    let mut merges = [0; 2];
    for split in [None, Some(128)] {
        config.fixed_split = split;
        let case = Case::new(&Spec::new(5, config, &[(1, 900), (2, 700), (40, 400), (1, 3)]));
        let mut attention = Attention::new(&gpu.cuda, config, gpu::limits(&case)).unwrap();
        let mut step = StepBuffer::new(&gpu.cuda, *attention.limits(), &[&attention]).unwrap();
        attention.plan(case.batch(), case.cache.layout.num_blocks, None).unwrap();
        let of_each = attention.parts().map(|plan| plan.merges().len());
        merges.iter_mut().zip(of_each).for_each(|(all, some)| *all += some);
        let batch = case.batch();
        let arrays = StepArrays { batch, slot_mapping: &[], positions: &[], tokens: &[] };
        step.upload(&gpu.stream, &arrays, &[&attention]).unwrap();
        let layers: Vec<_> = (0..10).map(|_| OnDevice::new(&gpu, &case)).collect();
        for (layer, memory) in layers.iter().enumerate() {
            gpu.set_seed(layer as u64);
            // SAFETY: all memory lives until the stream is done.
            unsafe { attention.run(&gpu.stream, &step, 0, &memory.args) }.unwrap();
        }
        let answers: Vec<_> = layers.iter().map(|memory| memory.answer(&gpu, &case)).collect();
        judge(&case, &oracle(&case), &naive(&case, None), &answers[0]).unwrap();
        for (layer, answer) in answers.iter().enumerate() {
            assert!(answer.bits() == answers[0].bits(), "layer {layer} differs from the first");
        }
    }
    assert!(merges.iter().all(|&merges| merges > 0), "of each kernel: {merges:?}");
    assert_eq!(gpu.reports(), Vec::<String>::new());
}
