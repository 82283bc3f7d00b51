//! What a row's bits must not depend on with fixed splits: its batch, the number of multiprocessors,
//! where its blocks lie, and the order of threads.

use std::ops::Range;
use std::sync::Arc;

use inflight::device::cuda::Cuda;
use inflight::kernels::cuda::Attention;
use inflight::kernels::{AttentionConfig, DType};

use crate::attention::{Answer, Case, MaskKind, Scales, Sinks, Spec};
use crate::gpu::{self, Gpu, TYPES};
use crate::rng::Rng;

/// Devices of the same kind and different sizes: of a GPU, the one there is.
fn devices(gpu: &Gpu) -> Vec<Arc<Cuda>> {
    let Some(emulator) = gpu.emulator() else { return vec![Arc::clone(&gpu.cuda)] };
    let of = |&count| {
        emulator.set_device(80, count);
        Cuda::new(0).expect("the same device")
    };
    let devices = [1, 3, 4, 17, 132].iter().map(of).collect();
    emulator.set_device(0, 0);
    devices
}

fn answer(gpu: &Gpu, cuda: &Arc<Cuda>, case: &Case) -> Answer {
    let limits = gpu::limits(case);
    let mut attention = Attention::new(cuda, case.spec.config, limits)
        .unwrap_or_else(|error| panic!("{error}: {:?}", case.spec));
    gpu::answer_with(gpu, case, &mut attention)
}

/// The bits of some tokens.
fn bits(case: &Case, answer: &Answer, tokens: Range<usize>) -> Vec<u32> {
    let (heads, dim) = (case.spec.config.num_q_heads, case.spec.config.head_dim);
    let o = &answer.o[tokens.start * heads * dim..tokens.end * heads * dim];
    let lse = &answer.lse[tokens.start * heads..tokens.end * heads];
    o.iter().chain(lse).map(|x| x.to_bits()).collect()
}

#[test]
fn a_row_is_the_same_in_any_batch_on_any_device() {
    let Some(gpu) = gpu::gpu() else { return };
    let (devices, mut rng, mut compared) = (devices(&gpu), Rng::new(12), 0);
    for (n, (q, kv)) in TYPES.into_iter().chain(TYPES).enumerate() {
        let dim = [64, 128, 80, 256, 96, 192, 112, 128][n];
        let mut config = AttentionConfig::new([6, 8][n % 2], 2, dim, q);
        config.kv_dtype = kv;
        config.fixed_split = Some([128, 256][n / 2 % 2]);
        config.window_left = (n == 3).then_some(200);
        let rows = [(1, 700), (3, 260), (30, 130), (0, 20), (1, 128), (5, 385), (1, 1), (64, 64)];
        let spec = Spec {
            sinks: if n % 3 == 0 { Sinks::SomeNone } else { Sinks::None },
            mask: if n % 4 == 1 { MaskKind::Tree } else { MaskKind::None },
            scales: if q == kv { Scales::None } else { Scales::PerHead },
            ..Spec::new(n as u64, config, &rows)
        };
        let case = Case::new(&spec);
        let whole = answer(&gpu, &devices[0], &case);
        let want: Vec<_> =
            (0..rows.len()).map(|row| bits(&case, &whole, case.tokens(row))).collect();
        for turn in 0..6 {
            let mut order: Vec<usize> = (0..rows.len()).collect();
            (1..order.len()).for_each(|i| order.swap(i, rng.below(i + 1)));
            order.truncate(rng.within(1, order.len()));
            let mut batch = case.select(&order);
            if rng.chance(50) {
                batch = batch.moved(&mut rng);
            }
            gpu.set_seed(turn);
            let found = answer(&gpu, &devices[turn as usize % devices.len()], &batch);
            for (at, &row) in order.iter().enumerate() {
                let same = bits(&batch, &found, batch.tokens(at)) == want[row];
                assert!(same, "row {at} of {:?}, turn {turn}: {:?}", batch.rows, batch.spec);
                compared += 1;
            }
        }
    }
    println!("{compared} rows compared on {} devices", devices.len());
    assert_eq!(gpu.reports(), Vec::<String>::new());
}

/// Without fixed splits results differ with the device, and are as good.
#[test]
fn any_number_of_multiprocessors_is_right() {
    let Some(gpu) = gpu::gpu() else { return };
    let config = AttentionConfig::new(8, 2, 64, DType::Bf16);
    let case = Case::new(&Spec::new(2, config, &[(1, 900), (1, 30), (40, 400), (3, 500)]));
    let (reference, plain) =
        (crate::attention::oracle(&case), crate::attention::naive(&case, None));
    for cuda in devices(&gpu) {
        let found = answer(&gpu, &cuda, &case);
        crate::attention::judge(&case, &reference, &plain, &found).unwrap();
        assert!(found.bits() == answer(&gpu, &cuda, &case).bits(), "again");
    }
    assert_eq!(gpu.reports(), Vec::<String>::new());
}
