//! Steps as large as their limits: buffers made for these hold whatever plan such a step has.

use inflight::BlockId;
use inflight::device::cuda::Cuda;
use inflight::kernels::cuda::{Attention, StepBuffer};
use inflight::kernels::{AttentionConfig, BatchView, Mask, StepArrays, StepLimits};

use crate::attention::{Case, MaskKind, Spec, judge, naive, oracle};
use crate::gpu::{self, TYPES};
use crate::rng::Rng;

/// Divides `total` among `rows`, at most `most` each, at random.
fn divide(rng: &mut Rng, total: usize, rows: usize, most: usize) -> Vec<usize> {
    let mut parts = vec![0; rows];
    let mut left = total.min(rows * most);
    while left > 0 {
        let row = rng.below(rows);
        let part = rng.within(1, left).min(most - parts[row]);
        parts[row] += part;
        left -= part;
    }
    parts
}

#[test]
fn steps_at_their_limits_fit() {
    let Some(gpu) = gpu::gpu() else { return };
    let (mut rng, mut most_parts) = (Rng::new(11), 0);
    for n in 0..150 {
        if let Some(emulator) = gpu.emulator() {
            emulator.set_device(0, rng.pick(&[1, 4, 108, 132]));
        }
        let cuda = Cuda::new(0).unwrap();
        let (q, kv) = TYPES[n % TYPES.len()];
        let heads = rng.pick(&[1, 2, 8]);
        let dim = rng.pick(&[64, 128, 256]);
        let mut config = AttentionConfig::new(heads * rng.pick(&[1, 3, 8, 16, 32]), heads, dim, q);
        config.kv_dtype = kv;
        config.causal = rng.chance(70);
        config.fixed_split = rng.chance(30).then_some(128);
        config.window_left = rng.chance(20).then_some(200);
        let rows = rng.pick(&[1, 2, 7, 64, 300]);
        let max_kv_len = rng.pick(&[1, 16, 100, 2000, 20_000]);
        let tokens = rng.pick(&[1, rows, rows + 5, 4 * rows, 500]);
        let q_lens = divide(&mut rng, tokens, rows, tokens);
        let block_size = rng.pick(&[1, 16, 128]);
        let kv_lens: Vec<usize> = (0..rows)
            .map(|_| if rng.chance(70) { max_kv_len } else { rng.within(0, max_kv_len) })
            .collect();
        let tables: Vec<usize> = kv_lens.iter().map(|len| len.div_ceil(block_size)).collect();
        let indptr = |lens: &[usize]| -> Vec<u32> {
            let ends = lens.iter().scan(0, |end, len| {
                *end += *len as u32;
                Some(*end)
            });
            std::iter::once(0).chain(ends).collect()
        };
        let (qo_indptr, kv_indptr) = (indptr(&q_lens), indptr(&tables));
        let blocks: usize = tables.iter().sum();
        let kv_indices: Vec<_> = (0..blocks as u32).map(BlockId).collect();
        let last = |len: &usize| len.checked_sub(1).map_or(0, |n| (n % block_size + 1) as u32);
        let kv_last_page_len: Vec<u32> = kv_lens.iter().map(last).collect();
        let batch = BatchView {
            qo_indptr: &qo_indptr,
            kv_indptr: &kv_indptr,
            kv_indices: &kv_indices,
            kv_last_page_len: &kv_last_page_len,
            block_size,
        };
        // A tree over the last keys, in some.
        let widths: Vec<u32> =
            q_lens.iter().zip(&kv_lens).map(|(q, kv)| (*q).min(*kv) as u32).collect();
        let bytes = q_lens.iter().zip(&widths).map(|(q, width)| q * (*width as usize).div_ceil(8));
        let mask_indptr = indptr(&bytes.collect::<Vec<_>>());
        let bits = vec![0xff; *mask_indptr.last().unwrap() as usize];
        let mask = Mask { bits: &bits, indptr: &mask_indptr, widths: &widths };
        let mask = rng.chance(40).then_some(mask);

        let limits = StepLimits {
            max_rows: rows,
            max_tokens: *qo_indptr.last().unwrap() as usize,
            max_blocks: blocks.max(1),
            max_kv_len,
            max_mask_bytes: mask.map_or(0, |mask| mask.bits.len()),
        };
        let what = format!("{n}: {config:?}, {limits:?}, {q_lens:?}");
        let mut attention = Attention::new(&cuda, config, limits).unwrap();
        let mut step = StepBuffer::new(&cuda, limits, &[&attention]).unwrap();
        let (slots, positions) = (vec![-1; limits.max_tokens], vec![0; limits.max_tokens]);
        let tokens = positions.clone();
        let arrays =
            StepArrays { batch, slot_mapping: &slots, positions: &positions, tokens: &tokens };
        attention.plan(batch, blocks, mask).unwrap_or_else(|why| panic!("{why}: {what}"));
        step.upload(&gpu.stream, &arrays, &[&attention])
            .unwrap_or_else(|why| panic!("{why}: {what}"));
        gpu.stream.synchronize().unwrap();
        let parts = attention.parts().map(|plan| plan.parts().len()).into_iter().sum();
        most_parts = most_parts.max(parts);
    }
    if let Some(emulator) = gpu.emulator() {
        emulator.set_device(0, 0);
    }
    println!("plans of up to {most_parts} parts");
}

/// A mask that covers no key needs no room for masks.
#[test]
fn a_mask_of_nothing() {
    let Some(gpu) = gpu::gpu() else { return };
    let config = AttentionConfig::new(4, 2, 64, TYPES[0].0);
    // Of more rows than there is room for by chance.
    let mut case = Case::new(&Spec::new(2, config, &[(1, 9), (3, 20)].repeat(20)));
    case.spec.mask = MaskKind::Any;
    let (indptr, widths) = (vec![0; 41], vec![0; 40]);
    case.mask = Some(crate::attention::Mask { bits: vec![], indptr, widths });
    assert_eq!(gpu::limits(&case).max_mask_bytes, 0);
    let found = gpu::answer(&gpu, &case);
    judge(&case, &oracle(&case), &naive(&case, None), &found).unwrap();
    assert_eq!(gpu.reports(), Vec::<String>::new());
}
