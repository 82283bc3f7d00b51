//! What is refused: the field named, nothing written.

use inflight::Error;
use inflight::kernels::cuda::{Append, Attention, Fusion, Merge, StepBuffer};
use inflight::kernels::rope::RopePairs;
use inflight::kernels::tensor::Shape;
use inflight::kernels::{
    AppendArgs, AttentionArgs, AttentionConfig, BatchView, DType, DeviceCache, DeviceScales,
    DeviceTensor, KvLayout, Rope, State, StepArrays,
};

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
    let arrays = StepArrays::new(case.batch());
    let blocks = case.cache.layout.num_blocks;

    // SAFETY: all memory lives until the stream is done.
    assert_eq!(field(unsafe { attention.run(&gpu.stream, &step, 0, &device.args) }), "plan");
    assert_eq!(field(step.upload(&gpu.stream, &arrays, &[&attention])), "groups");
    attention.plan(case.batch(), blocks, None).unwrap();
    // SAFETY: all memory lives until the stream is done.
    assert_eq!(field(unsafe { attention.run(&gpu.stream, &step, 0, &device.args) }), "step");
    step.upload(&gpu.stream, &arrays, &[&attention]).unwrap();
    // SAFETY: all memory lives until the stream is done.
    assert_eq!(field(unsafe { attention.run(&gpu.stream, &step, 1, &device.args) }), "group");

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

/// A tensor at another address, or of another shape.
fn tensor(of: DeviceTensor, away: u64, change: fn(&mut Shape)) -> DeviceTensor {
    let mut shape = of.shape();
    change(&mut shape);
    // SAFETY: it is refused.
    unsafe { DeviceTensor::new(of.address() + away, of.dtype(), shape) }
}

#[test]
fn addresses_and_strides_that_kernels_cannot_use() {
    let Some(gpu) = gpu::gpu() else { return };
    let config = AttentionConfig::new(4, 2, 64, DType::Bf16);
    let case = Case::new(&Spec::new(3, config, &[(1, 40), (5, 20)]));
    let mut attention = Attention::new(&gpu.cuda, config, gpu::limits(&case)).unwrap();
    let mut step = StepBuffer::new(&gpu.cuda, *attention.limits(), &[&attention]).unwrap();
    let device = OnDevice::new(&gpu, &case);
    let n = case.num_tokens();
    let (slots, positions) = (vec![-1; n], vec![0; n]);
    let arrays = StepArrays {
        batch: case.batch(),
        slot_mapping: &slots,
        positions: &positions,
        tokens: &[],
    };
    attention.plan(case.batch(), case.cache.layout.num_blocks, None).unwrap();
    step.upload(&gpu.stream, &arrays, &[&attention]).unwrap();

    type Change = fn(&mut AttentionArgs);
    let attend: [(&str, Change); 18] = [
        ("q", |a| a.q = tensor(a.q, 2, |_| ())),
        ("q", |a| a.q = tensor(a.q, 8, |_| ())),
        ("q", |a| a.q = tensor(a.q, 0, |s| s.token_stride += 1)),
        ("q", |a| a.q = tensor(a.q, 0, |s| s.token_stride += 4)),
        ("q", |a| a.q = tensor(a.q, 0, |s| s.head_stride -= 4)),
        ("q", |a| a.q = tensor(a.q, 0, |s| s.tokens -= 1)),
        ("q", |a| a.q = tensor(a.q, 0, |s| s.heads -= 1)),
        ("o", |a| a.o = tensor(a.o, 4, |_| ())),
        ("o", |a| a.o = tensor(a.o, 0, |s| s.token_stride += 2)),
        ("o", |a| a.o = tensor(a.o, 0, |s| s.head_stride += 1)),
        ("o", |a| a.o = tensor(a.o, 0, |s| s.head_stride = 0)),
        ("o", |a| a.o = tensor(a.o, 0, |s| s.token_stride = 64)),
        ("o", |a| a.o = tensor(a.o, 0, |s| s.tokens = 0)),
        ("o", |a| a.o = a.q),
        ("lse", |a| a.lse += 1),
        ("lse", |a| a.lse += 2),
        ("alibi_slopes", |a| a.alibi_slopes = a.lse + 3),
        ("sinks", |a| a.sinks = a.lse + 2),
    ];
    for (i, (want, change)) in attend.into_iter().enumerate() {
        let mut args = device.args;
        change(&mut args);
        // SAFETY: it is refused.
        let result = unsafe { attention.run(&gpu.stream, &step, 0, &args) };
        assert_eq!(field(result), want, "{i}");
    }

    let layout = KvLayout { dtype: DType::F32, ..case.cache.layout };
    let f32s = device.args.q.address();
    // SAFETY: it is refused.
    let cache = unsafe { DeviceCache::new(f32s, f32s + 16, layout, None) }.unwrap();
    // SAFETY: as above.
    let result =
        unsafe { attention.run(&gpu.stream, &step, 0, &AttentionArgs { cache, ..device.args }) };
    assert_eq!(field(result), "dtype", "of f32, a processor's");

    let base = device.args.q.address();
    let kv = |k: u64, v: u64, layout: KvLayout, scales| {
        // SAFETY: it is refused.
        field(unsafe { DeviceCache::new(k, v, layout, scales) })
    };
    let good = case.cache.layout;
    let with = |change: fn(&mut KvLayout)| {
        let mut layout = good;
        change(&mut layout);
        layout
    };
    assert_eq!(kv(0, base, good, None), "k");
    assert_eq!(kv(base, 0, good, None), "v");
    assert_eq!(kv(base + 2, base, good, None), "k");
    assert_eq!(kv(base, base + 8, good, None), "v");
    assert_eq!(kv(base, base, good, None), "v", "in the place of k");
    assert_eq!(kv(base, base + 16, with(|l| l.k.block += 4), None), "layout.k");
    assert_eq!(kv(base, base + 16, with(|l| l.v.block += 1), None), "layout.v");
    let scales = |k, v| Some(DeviceScales { k, v, per_head: false });
    assert_eq!(kv(base, base + 16, good, scales(base, base)), "scales");
    let fp8 = with(|l| l.dtype = DType::Fp8E4m3);
    assert_eq!(kv(base, base + 16, fp8, None), "scales");
    assert_eq!(kv(base, base + 16, fp8, scales(0, base)), "scales.k");
    assert_eq!(kv(base, base + 16, fp8, scales(base, 0)), "scales.v");
    assert_eq!(kv(base, base + 16, fp8, scales(base + 2, base)), "scales.k");
    assert_eq!(kv(base, base + 16, fp8, scales(base, base + 1)), "scales.v");

    let append = Append::new(&gpu.cuda, DType::Bf16, DType::Bf16).unwrap();
    let new = tensor(device.args.q, 0, |s| (s.heads, s.token_stride) = (2, 256));
    let rope = Rope {
        cos_sin: base,
        max_position: 1,
        rotary_dim: 64,
        pairs: RopePairs::Half,
        q: Some(device.args.q),
    };
    let args = AppendArgs { k: new, v: new, cache: device.args.cache, rope: Some(rope) };
    type AppendChange = fn(&mut AppendArgs, &mut Rope);
    let appends: [(&str, AppendChange); 13] = [
        ("k", |a, _| a.k = tensor(a.k, 2, |_| ())),
        ("k", |a, _| a.k = tensor(a.k, 0, |s| s.token_stride += 4)),
        ("k", |a, _| a.k = tensor(a.k, 0, |s| s.tokens -= 1)),
        ("v", |a, _| a.v = tensor(a.v, 8, |_| ())),
        ("v", |a, _| a.v = tensor(a.v, 0, |s| s.head_stride += 1)),
        ("v", |a, _| a.v = tensor(a.v, 0, |s| s.heads -= 1)),
        ("cos_sin", |_, r| r.cos_sin = 0),
        ("cos_sin", |_, r| r.cos_sin += 4),
        ("rotary_dim", |_, r| r.rotary_dim = 7),
        ("rotary_dim", |_, r| r.rotary_dim = 66),
        ("q", |_, r| r.q = r.q.map(|q| tensor(q, 4, |_| ()))),
        ("q", |_, r| r.q = r.q.map(|q| tensor(q, 0, |s| s.token_stride += 2))),
        // All is well but that the keys are where the queries are.
        ("q", |_, _| ()),
    ];
    for (i, (want, change)) in appends.into_iter().enumerate() {
        let (mut args, mut rope) = (args, rope);
        change(&mut args, &mut rope);
        args.rope = Some(rope);
        // SAFETY: it is refused.
        assert_eq!(field(unsafe { append.run(&gpu.stream, &step, &args) }), want, "{i}");
    }

    let merge = Merge::new(&gpu.cuda, DType::Bf16).unwrap();
    let AttentionArgs { q, o, lse, .. } = device.args;
    let state = State { o: q, lse };
    let run = |states: &[State], o, lse| {
        // SAFETY: it is refused.
        field(unsafe { merge.run(&gpu.stream, states, o, lse) })
    };
    assert_eq!(run(&[], o, lse), "states");
    assert_eq!(run(&[state; 17], o, lse), "states");
    assert_eq!(run(&[State { lse: 0, ..state }], o, lse), "states");
    assert_eq!(run(&[State { lse: lse + 2, ..state }], o, lse), "states");
    assert_eq!(run(&[State { o: tensor(q, 2, |_| ()), ..state }], o, lse), "states");
    let other = State { o: tensor(q, 0, |s| s.token_stride += 8), ..state };
    assert_eq!(run(&[state, other], o, lse), "states");
    assert_eq!(run(&[state], o, lse + 1), "lse");
    assert_eq!(run(&[state], tensor(o, 8, |_| ()), lse), "o");
    assert_eq!(run(&[state], tensor(o, 0, |s| s.head_stride += 1), lse), "o");

    // Nothing of all that was written.
    let poison = device.answer(&gpu, &case);
    assert!(poison.o.iter().chain(&poison.lse).all(|x| x.is_nan()));
}

/// Batches that are unsound never reach a kernel.
#[test]
fn batches_that_do_not_hold_together() {
    let Some(gpu) = gpu::gpu() else { return };
    let config = AttentionConfig::new(4, 2, 64, DType::Bf16);
    let case = Case::new(&Spec::new(3, config, &[(1, 40), (5, 20)]));
    let mut attention = Attention::new(&gpu.cuda, config, gpu::limits(&case)).unwrap();
    let mut step = StepBuffer::new(&gpu.cuda, *attention.limits(), &[&attention]).unwrap();
    let blocks = case.cache.layout.num_blocks;
    let good = case.batch();
    let beyond: Vec<_> =
        good.kv_indices.iter().map(|b| inflight::BlockId(b.0.max(blocks as u32))).collect();
    for (want, batch) in [
        ("qo_indptr", BatchView { qo_indptr: &[0, 1], ..good }),
        ("qo_indptr", BatchView { qo_indptr: &[1, 1, 6], ..good }),
        ("kv_indptr", BatchView { kv_indptr: &[0, 3, 2], ..good }),
        ("kv_indices", BatchView { kv_indices: &beyond, ..good }),
        ("kv_indices", BatchView { kv_indices: &good.kv_indices[..2], ..good }),
        ("kv_last_page_len", BatchView { kv_last_page_len: &[17, 4], ..good }),
        ("kv_last_page_len", BatchView { kv_last_page_len: &[0, 4], ..good }),
        ("block_size", BatchView { block_size: 0, ..good }),
    ] {
        assert_eq!(field(attention.plan(batch, blocks, None)), want);
        // And again where the step is packed, whatever was planned.
        attention.plan(good, blocks, None).unwrap();
        let arrays = StepArrays::new(batch);
        assert_eq!(field(step.upload(&gpu.stream, &arrays, &[&attention])), want);
    }
    let foreign = StepArrays { batch: good, slot_mapping: &[], positions: &[1], tokens: &[] };
    assert_eq!(field(step.upload(&gpu.stream, &foreign, &[&attention])), "positions");
    let foreign = StepArrays { positions: &[], tokens: &[1, 2], ..foreign };
    assert_eq!(field(step.upload(&gpu.stream, &foreign, &[&attention])), "tokens");
}
