//! What is refused: the field is named, and nothing is written.

use half::f16;
use inflight::kernels::cpu::{Attention, AttentionArgs};
use inflight::kernels::tensor::Shape;
use inflight::kernels::{
    AttentionConfig, BatchView, DType, KvCache, KvLayout, KvScales, Mask, StepLimits, TensorMut,
    TensorRef,
};
use inflight::{BlockId, Error};

use crate::attention::{Case, OnCpu, Scales, Spec};
use crate::cpus;

fn field(result: Result<(), Error>) -> String {
    match result {
        Err(Error::InvalidArgument { field, reason }) => {
            assert!(!reason.is_empty());
            field.to_string()
        }
        other => format!("{other:?}"),
    }
}

/// All that differ, at once.
fn report(wrong: &[String], checked: usize) {
    println!("{checked} calls refused");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn configurations() {
    type Change = fn(&mut AttentionConfig);
    let cases: [(&str, Change); 24] = [
        ("head_dim", |c| c.head_dim = 0),
        ("head_dim", |c| c.head_dim = 12),
        ("head_dim", |c| c.head_dim = 264),
        ("head_dim", |c| c.head_dim = usize::MAX - 7),
        ("num_kv_heads", |c| c.num_kv_heads = 0),
        ("num_kv_heads", |c| (c.num_q_heads, c.num_kv_heads) = (65537, 65537)),
        ("num_q_heads", |c| c.num_q_heads = 0),
        ("num_q_heads", |c| c.num_q_heads = 3),
        ("num_q_heads", |c| c.num_q_heads = 1),
        ("num_q_heads", |c| c.num_q_heads = 131_072),
        ("q_dtype", |c| c.q_dtype = DType::Fp8E4m3),
        ("q_dtype", |c| (c.q_dtype, c.kv_dtype) = (DType::Fp8E4m3, DType::Fp8E4m3)),
        ("kv_dtype", |c| c.kv_dtype = DType::F16),
        ("kv_dtype", |c| (c.q_dtype, c.kv_dtype) = (DType::Bf16, DType::F32)),
        ("kv_dtype", |c| (c.q_dtype, c.kv_dtype) = (DType::F16, DType::Bf16)),
        ("scale", |c| c.scale = f32::NAN),
        ("scale", |c| c.scale = f32::INFINITY),
        ("soft_cap", |c| c.soft_cap = Some(0.0)),
        ("soft_cap", |c| c.soft_cap = Some(-30.0)),
        ("soft_cap", |c| c.soft_cap = Some(f32::NAN)),
        ("soft_cap", |c| c.soft_cap = Some(f32::INFINITY)),
        ("fixed_split", |c| c.fixed_split = Some(0)),
        ("fixed_split", |c| c.fixed_split = Some(64)),
        ("fixed_split", |c| c.fixed_split = Some(1000)),
    ];
    let mut wrong = Vec::new();
    for (i, (want, change)) in cases.into_iter().enumerate() {
        let mut config = AttentionConfig::new(4, 2, 64, DType::F32);
        change(&mut config);
        let found = field(Attention::new(&cpus::all()[0], config, StepLimits::MAX).map(|_| ()));
        if found != want || field(config.check()) != want {
            wrong.push(format!("{i}: {found}, not {want}: {config:?}"));
        }
    }
    report(&wrong, cases.len());
}

/// Two rows, 3 queries over 20 keys and 1 over 16, and one without anything; blocks of 16.
#[derive(Clone)]
struct Batch {
    qo_indptr: Vec<u32>,
    kv_indptr: Vec<u32>,
    kv_indices: Vec<u32>,
    kv_last_page_len: Vec<u32>,
    block_size: usize,
}

#[test]
fn batches() {
    type Change = fn(&mut Batch);
    let cases: [(&str, Change); 25] = [
        ("qo_indptr", |b| b.qo_indptr = vec![0, 4, 3, 4]),
        ("qo_indptr", |b| b.qo_indptr = vec![0, 3, 4]),
        ("qo_indptr", |b| b.qo_indptr = vec![0, 3, 4, 4, 4]),
        ("qo_indptr", |b| b.qo_indptr = vec![]),
        ("qo_indptr", |b| b.qo_indptr = vec![1, 3, 4, 4]),
        ("kv_indptr", |b| b.kv_indptr = vec![0, 3, 2, 3]),
        ("kv_indptr", |b| b.kv_indptr = vec![0, 2, 3]),
        ("kv_indptr", |b| b.kv_indptr = vec![]),
        ("kv_indptr", |b| b.kv_indptr = vec![1, 2, 3, 3]),
        ("kv_indices", |b| b.kv_indices = vec![4, 1]),
        ("kv_indices", |b| b.kv_indices = vec![]),
        ("kv_indices", |b| b.kv_indices = vec![4, 1, 5]),
        ("kv_indices", |b| b.kv_indices = vec![u32::MAX, 1, 2]),
        ("kv_indptr", |b| (b.kv_indptr, b.block_size) = (vec![0, 2, 3, 3], 1 << 31)),
        ("kv_indptr", |b| b.block_size = usize::MAX / 2),
        ("kv_last_page_len", |b| b.kv_last_page_len = vec![0, 16, 0]),
        ("kv_last_page_len", |b| b.kv_last_page_len = vec![17, 16, 0]),
        ("kv_last_page_len", |b| b.kv_last_page_len = vec![u32::MAX, 16, 0]),
        ("kv_last_page_len", |b| b.kv_last_page_len = vec![4, 16, 1]),
        ("block_size", |b| b.block_size = 0),
        // With too few rows it is the others that are too long.
        ("qo_indptr", |b| b.kv_last_page_len = vec![4, 16]),
        ("qo_indptr", |b| b.kv_last_page_len = vec![]),
        ("kv_indices", |b| b.kv_indptr = vec![0, 2, 3, u32::MAX]),
        ("kv_indices", |b| b.kv_indptr = vec![0, u32::MAX, u32::MAX, u32::MAX]),
        ("qo_indptr", |b| b.qo_indptr = vec![0, u32::MAX, 4, 4]),
    ];
    let good = Batch {
        qo_indptr: vec![0, 3, 4, 4],
        kv_indptr: vec![0, 2, 3, 3],
        kv_indices: vec![4, 1, 2],
        kv_last_page_len: vec![4, 16, 0],
        block_size: 16,
    };
    let plan = |on: &mut OnCpu, batch: &Batch| {
        let kv_indices: Vec<BlockId> = batch.kv_indices.iter().map(|&b| BlockId(b)).collect();
        let view = BatchView {
            qo_indptr: &batch.qo_indptr,
            kv_indptr: &batch.kv_indptr,
            kv_indices: &kv_indices,
            kv_last_page_len: &batch.kv_last_page_len,
            block_size: batch.block_size,
        };
        on.plan(view, 5, None)
    };
    let config = AttentionConfig::new(4, 2, 64, DType::F32);
    let mut on = OnCpu::new(&cpus::all()[0], config);
    plan(&mut on, &good).expect("it is sound");
    let mut wrong = Vec::new();
    for (i, (want, change)) in cases.into_iter().enumerate() {
        let mut batch = good.clone();
        change(&mut batch);
        let found = field(plan(&mut on, &batch));
        if found != want {
            wrong.push(format!("{i}: {found}, not {want}"));
        }
    }
    // Rows may share blocks.
    plan(&mut on, &Batch { kv_indices: vec![4, 1, 4], ..good }).expect("it is sound");
    let none = BatchView {
        qo_indptr: &[0],
        kv_indptr: &[0],
        kv_indices: &[],
        kv_last_page_len: &[],
        block_size: 16,
    };
    on.plan(none, 1, None).expect("no rows are a batch");
    report(&wrong, cases.len());
}

/// Arguments that own everything.
struct Args {
    q: (Vec<f32>, Shape),
    o: (Vec<f32>, Shape),
    f16: bool,
    layout: KvLayout,
    k_scale: Vec<f32>,
    v_scale: Vec<f32>,
    lse: Option<usize>,
    alibi: Option<Vec<f32>>,
    sinks: Option<Vec<f32>>,
    mask: Option<(Vec<u8>, Vec<u32>, Vec<u32>)>,
}

impl Args {
    fn new(dtype: DType) -> Self {
        let shape = Shape::contiguous(4, 4, 64);
        Self {
            q: (vec![1.0; 4096], shape),
            o: (vec![f32::NAN; 4096], shape),
            f16: false,
            layout: KvLayout::nhd(dtype, 5, 16, 2, 64),
            k_scale: vec![],
            v_scale: vec![],
            lse: Some(16),
            alibi: None,
            sinks: None,
            mask: None,
        }
    }

    /// Plans, where there is a batch to plan, and runs.
    fn run(mut self, on: &mut OnCpu, batch: Option<BatchView<'_>>) -> String {
        let mask = self.mask.as_ref();
        let mask = mask.map(|(bits, indptr, widths)| Mask { bits, indptr, widths });
        if let Some(refused) = batch.and_then(|batch| on.plan(batch, 5, mask).err()) {
            return field(Err(refused));
        }
        let mut cache = [vec![0_u128; 1 << 15], vec![0_u128; 1 << 15]];
        let [k, v] = &mut cache;
        let cache = KvCache::new(k, v, self.layout).expect("it is sound");
        let halves = vec![f16::ONE; 4096];
        let mut lse = vec![f32::NAN; self.lse.unwrap_or(0)];
        let q = if self.f16 {
            TensorRef::new(&halves, self.q.1)
        } else {
            TensorRef::new(&self.q.0, self.q.1)
        };
        // SAFETY: the slice holds every shape that the tests give, which a safe view checks.
        let o = unsafe { TensorMut::from_raw(self.o.0.as_mut_ptr().cast(), DType::F32, self.o.1) };
        let result = on.run(AttentionArgs {
            q: q.expect("it fits"),
            cache: &cache,
            scales: KvScales { k: &self.k_scale, v: &self.v_scale },
            o,
            lse: self.lse.is_some().then_some(&mut lse[..]),
            alibi_slopes: self.alibi.as_deref(),
            sinks: self.sinks.as_deref(),
        });
        let touched = self.o.0.iter().chain(&lse).any(|x| !x.is_nan());
        assert_eq!(touched, result.is_ok(), "{result:?}");
        field(result)
    }
}

#[test]
fn arguments() {
    type Change = fn(&mut Args);
    let cases: [(&str, Change); 41] = [
        ("q", |a| a.f16 = true),
        ("q", |a| a.q.1 = Shape::contiguous(4, 2, 64)),
        ("q", |a| a.q.1 = Shape::contiguous(4, 4, 56)),
        ("q", |a| a.q.1 = Shape::contiguous(3, 4, 64)),
        ("o", |a| a.o.1 = Shape::contiguous(4, 8, 64)),
        ("o", |a| a.o.1 = Shape::contiguous(4, 4, 72)),
        ("o", |a| a.o.1 = Shape::contiguous(3, 4, 64)),
        ("o", |a| a.o.1.token_stride = 255),
        ("o", |a| a.o.1.head_stride = 63),
        ("o", |a| a.o.1.token_stride = 0),
        ("cache", |a| a.layout = KvLayout::nhd(DType::F32, 5, 16, 4, 64)),
        ("cache", |a| a.layout = KvLayout::nhd(DType::F32, 5, 16, 2, 128)),
        ("cache", |a| a.layout = KvLayout::nhd(DType::F16, 5, 16, 2, 64)),
        ("cache", |a| a.layout = KvLayout::nhd(DType::F32, 5, 8, 2, 64)),
        ("cache", |a| a.layout = KvLayout::nhd(DType::F32, 4, 16, 2, 64)),
        ("scales.k", |a| a.k_scale = vec![1.0]),
        ("scales.v", |a| a.v_scale = vec![1.0, 1.0]),
        ("lse", |a| a.lse = Some(15)),
        ("lse", |a| a.lse = Some(0)),
        ("alibi_slopes", |a| a.alibi = Some(vec![1.0; 2])),
        ("alibi_slopes", |a| a.alibi = Some(vec![])),
        ("alibi_slopes", |a| a.alibi = Some(vec![1.0, 1.0, f32::NAN, 1.0])),
        ("alibi_slopes", |a| a.alibi = Some(vec![f32::NEG_INFINITY; 4])),
        ("sinks", |a| a.sinks = Some(vec![1.0; 5])),
        ("sinks", |a| a.sinks = Some(vec![1.0, f32::NAN, 1.0, 1.0])),
        ("sinks", |a| a.sinks = Some(vec![f32::INFINITY; 4])),
        // 3 queries over 20 keys, 1 over 16, nothing.
        ("mask.widths", |a| a.mask = Some((vec![0; 64], vec![0, 9, 11, 11], vec![21, 16, 0]))),
        ("mask.widths", |a| a.mask = Some((vec![0; 64], vec![0, 9, 11, 11], vec![20, 16, 1]))),
        ("mask.widths", |a| a.mask = Some((vec![0; 64], vec![0, 9, 11, 11], vec![20, 16]))),
        ("mask.widths", |a| a.mask = Some((vec![0; 64], vec![0, 9, 11, 11], vec![20, 16, 0, 0]))),
        ("mask.widths", |a| a.mask = Some((vec![0; 64], vec![0, 9, 11, 11], vec![u32::MAX; 3]))),
        ("mask.indptr", |a| a.mask = Some((vec![0; 64], vec![0, 9, 11], vec![20, 16, 0]))),
        ("mask.indptr", |a| a.mask = Some((vec![0; 64], vec![], vec![20, 16, 0]))),
        ("mask.indptr", |a| a.mask = Some((vec![0; 64], vec![0, 8, 11, 11], vec![20, 16, 0]))),
        ("mask.indptr", |a| a.mask = Some((vec![0; 64], vec![0, 9, 10, 11], vec![20, 16, 0]))),
        ("mask.indptr", |a| a.mask = Some((vec![0; 64], vec![12, 9, 11, 11], vec![20, 16, 0]))),
        ("mask.indptr", |a| a.mask = Some((vec![0; 64], vec![0, 11, 9, 11], vec![20, 16, 0]))),
        ("mask.bits", |a| a.mask = Some((vec![0; 10], vec![0, 9, 11, 11], vec![20, 16, 0]))),
        ("mask.bits", |a| a.mask = Some((vec![], vec![0, 9, 11, 11], vec![20, 16, 0]))),
        ("mask.indptr", |a| a.mask = Some((vec![0; 64], vec![0, 9, 11, 5], vec![20, 16, 0]))),
        ("mask.bits", |a| {
            a.mask =
                Some((vec![0; 64], vec![u32::MAX - 3, u32::MAX, u32::MAX, 9], vec![20, 16, 0]));
        }),
    ];
    let fp8: [(&str, Change); 11] = [
        ("scales.k", |a| a.k_scale = vec![]),
        ("scales.v", |a| a.v_scale = vec![]),
        ("scales.k", |a| a.k_scale = vec![1.0; 3]),
        ("scales.v", |a| a.v_scale = vec![1.0; 4]),
        ("scales.k", |a| a.k_scale = vec![f32::NAN]),
        ("scales.k", |a| a.k_scale = vec![1.0, 0.0]),
        ("scales.v", |a| a.v_scale = vec![-1.0]),
        ("scales.v", |a| a.v_scale = vec![f32::INFINITY]),
        ("scales.v", |a| a.v_scale = vec![1.0, -0.0]),
        ("cache", |a| a.layout.dtype = DType::F32),
        ("q", |a| a.f16 = true),
    ];
    let mut wrong = Vec::new();
    let batch = BatchView {
        qo_indptr: &[0, 3, 4, 4],
        kv_indptr: &[0, 2, 3, 3],
        kv_indices: &[BlockId(4), BlockId(1), BlockId(2)],
        kv_last_page_len: &[4, 16, 0],
        block_size: 16,
    };
    let lists = [(DType::F32, &cases[..]), (DType::Fp8E4m3, &fp8[..])];
    for (dtype, changes) in lists {
        let mut config = AttentionConfig::new(4, 2, 64, DType::F32);
        config.kv_dtype = dtype;
        let mut on = OnCpu::new(&cpus::all()[0], config);
        let args = || {
            let mut args = Args::new(dtype);
            if dtype == DType::Fp8E4m3 {
                (args.k_scale, args.v_scale) = (vec![0.5], vec![1.0, 2.0]);
            }
            args
        };
        // Before any plan there is nothing that could be run.
        let found = args().run(&mut on, None);
        if found.starts_with("Ok") || found.starts_with("Err") {
            wrong.push(format!("run before plan: {found}"));
        }
        for (i, (want, change)) in changes.iter().enumerate() {
            let mut args = args();
            change(&mut args);
            let found = args.run(&mut on, Some(batch));
            if found != *want {
                wrong.push(format!("{dtype}, {i}: {found}, not {want}"));
            }
        }
        // After all that was refused, and with more than is needed, it runs.
        let mut sound = args();
        sound.lse = Some(100);
        sound.layout.num_blocks = 7;
        sound.sinks = Some(vec![f32::NEG_INFINITY, 0.0, 1e30, -1e30]);
        sound.mask = Some((vec![0xff; 64], vec![3, 20, 30, 40], vec![20, 0, 0]));
        let found = sound.run(&mut on, Some(batch));
        if found != "Ok(())" {
            wrong.push(format!("{dtype}, sound: {found}"));
        }
    }
    report(&wrong, cases.len() + fp8.len());
}

/// A cache smaller than planned for, and a scale beyond what a case has, through a whole case.
#[test]
fn a_refused_run_leaves_the_plan() {
    let mut config = AttentionConfig::new(4, 2, 64, DType::F16);
    config.kv_dtype = DType::Fp8E4m3;
    let spec = Spec { scales: Scales::PerHead, ..Spec::new(1, config, &[(3, 100), (1, 17)]) };
    let mut case = Case::new(&spec);
    for cpu in cpus::each(0) {
        let mut on = case.attention(cpu);
        case.plan(&mut on).expect("it is sound");
        let before = case.execute(&on, true).expect("it is sound");
        let scales = std::mem::replace(&mut case.k_scale, vec![f32::NAN]);
        case.execute(&on, true).expect_err("NaN is no scale");
        case.k_scale = scales;
        let after = case.execute(&on, true).expect("it is sound");
        assert_eq!(before.bits(), after.bits());
    }
}
