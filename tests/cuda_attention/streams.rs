//! Several streams, attentions and steps at a time, and uploads far ahead of their use.

use inflight::device::cuda::CudaStream;
use inflight::kernels::cuda::{Attention, Fusion, StepBuffer};
use inflight::kernels::{AttentionConfig, DType, StepArrays};

use crate::attention::{Answer, Case, Mask, MaskKind, Sinks, Spec, judge, naive, oracle};
use crate::gpu::{self, Gpu, OnDevice};
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
        self.attention.plan(case.batch(), blocks, case.kernel_mask()).unwrap();
        let batch = case.batch();
        let arrays = StepArrays::new(batch);
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

/// Layers of four kinds in one step, as models that mix windows and full attention have them; then
/// steps with fewer, of which a graph has launches all the same.
#[test]
fn groups_share_a_step() {
    let Some(gpu) = gpu::gpu() else { return };
    let plain = AttentionConfig::new(8, 2, 64, DType::Bf16);
    let windowed = AttentionConfig { window_left: Some(100), ..plain };
    let mut wide = AttentionConfig::new(4, 1, 128, DType::F16);
    wide.kv_dtype = DType::Fp8E4m3;
    let capped = AttentionConfig { soft_cap: Some(20.0), fixed_split: Some(128), ..wide };
    let configs = [plain, windowed, wide, capped];
    let masks = [MaskKind::None, MaskKind::Tree, MaskKind::Full, MaskKind::None];
    let largest = configs.map(|config| {
        // Made without a window, which would leave keys before it unwritten.
        let unbounded = AttentionConfig { window_left: None, ..config };
        let spec = Spec::new(1, unbounded, &[(40, 700); 4]);
        let mut case = Case::new(&Spec { mask: MaskKind::Full, ..spec });
        case.spec.config = config;
        case
    });
    // Of the same rows, so of the same limits.
    let limits = gpu::limits(&largest[0]);
    let mut groups: Vec<_> =
        configs.iter().map(|&c| Attention::new(&gpu.cuda, c, limits).unwrap()).collect();
    let mut step = StepBuffer::new(&gpu.cuda, limits, &groups.iter().collect::<Vec<_>>()).unwrap();
    let memory: Vec<_> = largest.iter().map(|case| OnDevice::new(&gpu, case)).collect();
    let (mut graph, mut rng) = (None, Rng::new(3));
    let steps: [(&[(usize, usize)], usize); 5] = [
        (&[(1, 700), (3, 40), (40, 300), (0, 9)], 4),
        (&[(40, 40), (1, 1)], 4),
        (&[(2, 130), (1, 650), (1, 16)], 2),
        (&[], 4),
        (&[(1, 129), (1, 500), (5, 600), (40, 700)], 1),
    ];
    for (n, (rows, there)) in steps.into_iter().enumerate() {
        let mut cases: Vec<Case> = largest.iter().map(|case| case.with_rows(rows)).collect();
        for (case, kind) in cases.iter_mut().zip(masks) {
            case.spec.mask = kind;
            case.mask = Mask::new(kind, rows, &mut rng);
        }
        // Made alike, they have one block table.
        assert!(cases.iter().all(|case| case.kv_indices == cases[0].kv_indices));
        for (group, case) in groups.iter_mut().zip(&cases) {
            group.plan(case.batch(), case.cache.layout.num_blocks, case.kernel_mask()).unwrap();
        }
        let batch = cases[0].batch();
        let arrays = StepArrays::new(batch);
        let all: Vec<_> = groups.iter().collect();
        step.upload(&gpu.stream, &arrays, &all[..there]).unwrap();
        for (at, (group, memory)) in groups.iter().zip(&memory).enumerate() {
            // SAFETY: all memory lives until the stream is done.
            let result = unsafe { group.run(&gpu.stream, &step, at, &memory.args) };
            assert_eq!(result.is_ok(), at < there, "step {n}, group {at}");
        }
        let eager: Vec<_> = answers(&gpu, &largest, &cases, &memory[..there]);
        let graph = graph.get_or_insert_with(|| {
            let all = |stream: &CudaStream| {
                groups.iter().zip(&memory).enumerate().try_for_each(|(at, (group, memory))| {
                    // SAFETY: all memory lives until the stream is done.
                    unsafe { group.run(stream, &step, at, &memory.args) }
                })
            };
            gpu.stream.capture(all).unwrap()
        });
        memory.iter().for_each(|memory| memory.poison(&gpu));
        // SAFETY: as above.
        unsafe { graph.launch(&gpu.stream) }.unwrap();
        let replayed = answers(&gpu, &largest, &cases, &memory[..there]);
        for (case, (eager, replayed)) in cases.iter().zip(eager.iter().zip(&replayed)) {
            judge(case, &oracle(case), &naive(case, None), eager).unwrap();
            assert!(eager.bits() == replayed.bits(), "step {n}: {:?}", case.spec);
        }
        // Groups that are not of the step leave their outputs as they were.
        for (memory, case) in memory.iter().zip(&largest).skip(there) {
            assert!(memory.answer_of(&gpu, case, 0).o.is_empty());
        }
        assert_eq!(gpu.reports(), Vec::<String>::new(), "step {n}");
        memory.iter().for_each(|memory| memory.poison(&gpu));
    }
}

fn answers(gpu: &Gpu, largest: &[Case], cases: &[Case], memory: &[OnDevice]) -> Vec<Answer> {
    let each = memory.iter().zip(largest).zip(cases);
    each.map(|((memory, all), case)| memory.answer_of(gpu, all, case.num_tokens())).collect()
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
        let limits = gpu::limits(&case);
        let mut attention =
            Attention::with_fusion(&gpu.cuda, config, limits, Fusion::Never).unwrap();
        let mut step = StepBuffer::new(&gpu.cuda, *attention.limits(), &[&attention]).unwrap();
        attention.plan(case.batch(), case.cache.layout.num_blocks, None).unwrap();
        let of_each = attention.parts().map(|plan| plan.merges().len());
        merges.iter_mut().zip(of_each).for_each(|(all, some)| *all += some);
        let batch = case.batch();
        let arrays = StepArrays::new(batch);
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
