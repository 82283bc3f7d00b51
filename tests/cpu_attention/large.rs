//! Caches of more than 2^31 elements: addresses that do not fit 32 bits, signed or not.

use std::alloc::{Layout, alloc_zeroed, dealloc};

use inflight::BlockId;
use inflight::kernels::cpu::AttentionArgs;
use inflight::kernels::tensor::Shape;
use inflight::kernels::{
    AttentionConfig, BatchView, DType, KvCache, KvLayout, KvScales, KvStrides, TensorMut, TensorRef,
};

use crate::attention::OnCpu;
use crate::cpus;

/// Zeroed memory that the system maps as it is touched.
struct Lazy(*mut u128, Layout);

impl Lazy {
    fn new(bytes: usize) -> Option<Self> {
        let layout = Layout::from_size_align(bytes, 16).expect("a small power of two");
        // SAFETY: the size is not 0.
        let start = unsafe { alloc_zeroed(layout) };
        (!start.is_null()).then_some(Self(start.cast(), layout))
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: so many bytes are allocated and zero, and borrowed as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.0.cast(), self.1.size()) }
    }
}

impl Drop for Lazy {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.0.cast(), self.1) }
    }
}

#[test]
fn blocks_beyond_32_bits() {
    for dtype in [DType::Fp8E4m3, DType::Bf16] {
        let (num_blocks, bs, heads, dim) = (40, 16, 2, 64);
        // V half way between K's blocks: 5 GiB in all, more than 2^31 elements and 2^32 bytes.
        let far = (1 << 27) / dtype.size();
        let token = heads * dim;
        let strides = KvStrides { block: far, token, head: dim };
        let layout = KvLayout {
            dtype,
            num_blocks,
            block_size: bs,
            num_heads: heads,
            head_dim: dim,
            k: strides,
            v: strides,
        };
        let bytes = num_blocks * far * dtype.size();
        let Some(mut memory) = Lazy::new(bytes) else {
            println!("skipped: {bytes} bytes of {dtype} cannot be had");
            continue;
        };
        // Blocks on both sides of 2^31 and 2^32 elements and bytes; the last of all.
        let table = [39_u32, 15, 16, 31, 32, 17, 8];
        let keys = table.len() * bs - 5;
        let one = if dtype == DType::Bf16 { [0x80, 0x3f] } else { [0x38, 0] };
        let mut total = 0.0;
        for j in 0..keys {
            let at = table[j / bs] as usize * far + j % bs * token;
            // Keys are 0, values 1 in one element of each head: which, says the key.
            let d = j % dim;
            for head in 0..heads {
                let at = (at + far / 2 + head * dim + d) * dtype.size();
                memory.bytes()[at..][..dtype.size()].copy_from_slice(&one[..dtype.size()]);
            }
            total += 1.0;
        }
        // What would be read if addresses wrapped.
        for wrapped in [0_usize, 1, 7, 9] {
            let at = wrapped * far * dtype.size();
            memory.bytes()[at..][..bs * token * dtype.size()].fill(0xff);
            let at = (wrapped * far + far / 2) * dtype.size();
            memory.bytes()[at..][..bs * token * dtype.size()].fill(0xff);
        }
        let cache = KvCache::combined(memory.bytes(), 0, far / 2, layout).expect("it is sound");
        let mut config = AttentionConfig::new(4, heads, dim, DType::F32);
        if dtype == DType::Bf16 {
            config.q_dtype = DType::Bf16;
        }
        config.kv_dtype = dtype;
        let indices = table.map(BlockId);
        let batch = BatchView {
            qo_indptr: &[0, 1],
            kv_indptr: &[0, table.len() as u32],
            kv_indices: &indices,
            kv_last_page_len: &[bs as u32 - 5],
            block_size: bs,
        };
        for cpu in cpus::each(1) {
            let mut on = OnCpu::new(cpu, config);
            on.plan(batch, num_blocks, None).expect("it is sound");
            let shape = Shape::contiguous(1, 4, dim);
            let (q, mut o) = (vec![1.0_f32; 256], vec![f32::NAN; 256]);
            let q16: Vec<_> = q.iter().map(|&x| half::bf16::from_f32(x)).collect();
            let mut o16 = vec![half::bf16::NAN; 256];
            let mut lse = [0.0; 4];
            let wide = dtype == DType::Fp8E4m3;
            let (q, out) = match wide {
                true => (TensorRef::new(&q, shape), TensorMut::new(&mut o, shape)),
                false => (TensorRef::new(&q16, shape), TensorMut::new(&mut o16, shape)),
            };
            let scales = if wide { KvScales { k: &[1.0], v: &[1.0] } } else { KvScales::NONE };
            let args = AttentionArgs {
                q: q.expect("it fits"),
                cache: &cache,
                scales,
                o: out.expect("it fits"),
                lse: Some(&mut lse),
                alibi_slopes: None,
                sinks: None,
            };
            on.run(args).expect("it is sound");
            if !wide {
                o.iter_mut().zip(&o16).for_each(|(o, x)| *o = x.to_f32());
            }
            for (i, o) in o.iter().enumerate() {
                let hits = (0..keys).filter(|j| j % dim == i % dim).count();
                let want = hits as f32 / keys as f32;
                assert!((o - want).abs() < 1e-4, "{cpu:?}, {dtype}, {i}: {o}, not {want}");
            }
            let want = f64::ln(total) as f32;
            assert!(lse.iter().all(|lse| (lse - want).abs() < 1e-5), "{cpu:?}: {lse:?}");
        }
        println!("{dtype}: {bytes} bytes spanned");
    }
}
