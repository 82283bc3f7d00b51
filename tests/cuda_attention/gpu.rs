//! The device under test, and cases carried over to it.

use std::sync::Arc;

use inflight::device::cuda::{Cuda, CudaBuffer, CudaStream};
use inflight::kernels::cuda::{Attention, Fusion, StepBuffer};
use inflight::kernels::{
    AttentionArgs, DType, DeviceCache, DeviceScales, DeviceTensor, StepArrays, StepLimits,
};
use inflight::{Error, Result};

use crate::attention::{Answer, Case};
use crate::device::{Device, device};

/// The device, and a stream.
pub(crate) struct Gpu {
    pub(crate) cuda: Arc<Cuda>,
    pub(crate) stream: CudaStream,
    device: Device,
}

pub(crate) fn gpu() -> Option<Gpu> {
    let device = device()?;
    let stream = CudaStream::new(&device.cuda).expect("a stream");
    Some(Gpu { cuda: Arc::clone(&device.cuda), stream, device })
}

impl Gpu {
    /// What it is where it is no GPU.
    pub(crate) fn emulator(&self) -> Option<&'static simt::Emulator> {
        self.device.emulator
    }

    /// Whether it looks for races.
    pub(crate) fn is_checking(&self) -> bool {
        self.device.emulator.is_some_and(simt::Emulator::is_checking)
    }

    /// Another order of threads and blocks, where that can be chosen.
    pub(crate) fn set_seed(&self, seed: u64) {
        if let Some(emulator) = self.device.emulator {
            emulator.set_seed(seed);
        }
    }

    /// Races, reads of what nobody wrote, and whatever else the emulator reports.
    pub(crate) fn reports(&self) -> Vec<String> {
        self.device.emulator.map_or_else(Vec::new, simt::Emulator::reports)
    }

    /// A copy in device memory; empty slices have an address too.
    pub(crate) fn upload(&self, bytes: &[u8]) -> CudaBuffer {
        upload(&self.stream, bytes).expect("device memory")
    }
}

pub(crate) fn upload(stream: &CudaStream, bytes: &[u8]) -> Result<CudaBuffer> {
    let buffer = CudaBuffer::new(stream.cuda(), bytes.len().max(16))?;
    stream.write(&buffer, 0, bytes)?;
    Ok(buffer)
}

/// Limits that a case is within.
pub(crate) fn limits(case: &Case) -> StepLimits {
    StepLimits {
        max_rows: case.rows.len().max(1),
        max_tokens: case.num_tokens().max(1),
        max_blocks: case.kv_indices.len(),
        max_kv_len: case.rows.iter().map(|row| row.1).max().unwrap_or(0).max(1),
        max_mask_bytes: case.mask.as_ref().map_or(0, |mask| mask.bits.len()),
    }
}

/// A case's tensors in device memory.
pub(crate) struct OnDevice {
    q: CudaBuffer,
    o: CudaBuffer,
    lse: CudaBuffer,
    pub(crate) args: AttentionArgs,
    /// Freed with the case.
    _others: Vec<CudaBuffer>,
}

impl OnDevice {
    pub(crate) fn new(gpu: &Gpu, case: &Case) -> Self {
        Self::try_new(&gpu.stream, case).expect("a case in device memory")
    }

    pub(crate) fn try_new(stream: &CudaStream, case: &Case) -> Result<Self> {
        let numbers = |numbers: &[f32]| upload(stream, bytemuck::cast_slice(numbers));
        let out = case.output();
        let (q, o) = (upload(stream, case.q.bytes())?, upload(stream, out.bytes())?);
        let rows = case.num_tokens() * case.spec.config.num_q_heads;
        let lse = upload(stream, &vec![0xff; 4 * (rows + 3)])?;
        let (k_bytes, v_bytes, v_start) = case.cache.memory();
        let k = upload(stream, k_bytes)?;
        let v = v_bytes.map(|bytes| upload(stream, bytes)).transpose()?;
        let v_address = v.as_ref().map_or(k.address() + v_start as u64, CudaBuffer::address);
        let scales = [numbers(&case.k_scale)?, numbers(&case.v_scale)?];
        let extra = |values: &Option<Vec<f32>>| values.as_deref().map(numbers).transpose();
        let extras = [extra(&case.alibi)?, extra(&case.sinks)?];
        let address = |buffer: &Option<CudaBuffer>| buffer.as_ref().map_or(0, CudaBuffer::address);
        let fp8 = case.is_fp8().then(|| DeviceScales {
            k: scales[0].address(),
            v: scales[1].address(),
            per_head: case.k_scale.len() > 1,
        });
        let tensor = |buffer: &CudaBuffer, tokens: &crate::attention::Tokens| {
            let start = tokens.start_bytes() as u64;
            // SAFETY: the buffer holds the tensor, and lives as long as this.
            unsafe { DeviceTensor::new(buffer.address() + start, tokens.dtype(), tokens.shape) }
        };
        let (q_tensor, o_tensor) = (tensor(&q, &case.q), tensor(&o, &out));
        // SAFETY: as above.
        let cache = unsafe { DeviceCache::new(k.address(), v_address, case.cache.layout, fp8) };
        let args = AttentionArgs {
            lse: lse.address(),
            alibi_slopes: address(&extras[0]),
            sinks: address(&extras[1]),
            ..AttentionArgs::new(q_tensor, cache?, o_tensor)
        };
        let mut others = vec![k];
        others.extend(v);
        others.extend(scales);
        others.extend(extras.into_iter().flatten());
        Ok(Self { q, o, lse, args, _others: others })
    }

    /// What was written; everything else must be as it was.
    pub(crate) fn answer(&self, gpu: &Gpu, case: &Case) -> Answer {
        self.answer_of(gpu, case, case.num_tokens())
    }

    /// The same on another stream.
    pub(crate) fn try_answer(&self, stream: &CudaStream, case: &Case) -> Result<Answer> {
        self.read(stream, case, case.num_tokens())
    }

    /// The same where only the first tokens are to be written.
    pub(crate) fn answer_of(&self, gpu: &Gpu, case: &Case, tokens: usize) -> Answer {
        self.read(&gpu.stream, case, tokens).expect("copies")
    }

    fn read(&self, stream: &CudaStream, case: &Case, tokens: usize) -> Result<Answer> {
        let mut out = case.output();
        stream.read(out.bytes_mut(), &self.o, 0)?;
        let mut q = vec![0; case.q.bytes().len()];
        stream.read(&mut q, &self.q, 0)?;
        assert!(q == case.q.bytes(), "queries were written");
        let n = tokens * case.spec.config.num_q_heads;
        let mut lse = vec![0.0_f32; self.lse.len() / 4];
        stream.read(bytemuck::cast_slice_mut(&mut lse), &self.lse, 0)?;
        assert!(lse[n..].iter().all(|x| x.to_bits() == u32::MAX), "written past the LSE");
        lse.truncate(n);
        Ok(Answer { o: out.take(tokens), lse })
    }

    /// Queues copies of another's output and LSE.
    pub(crate) fn copy_outputs(&self, gpu: &Gpu, from: &Self) {
        for (to, from) in [(&self.o, &from.o), (&self.lse, &from.lse)] {
            gpu.stream.copy((to, 0), (from, 0), from.len()).expect("a copy");
        }
    }

    /// Output and LSE are poison again.
    pub(crate) fn poison(&self, gpu: &Gpu) {
        for buffer in [&self.o, &self.lse] {
            gpu.stream.fill(buffer, 0, buffer.len(), 0xff).expect("a fill");
        }
    }
}

/// Plan, upload and run.
pub(crate) fn answer(gpu: &Gpu, case: &Case) -> Answer {
    answer_with(gpu, case, &mut attention(gpu, case, Fusion::Auto))
}

/// For a case, with one launch or two; two where there is no kernel for rows of both kinds.
pub(crate) fn attention(gpu: &Gpu, case: &Case, fusion: Fusion) -> Attention {
    let config = case.spec.config;
    let has_kernel = config.head_dim <= 128 && config.num_q_heads / config.num_kv_heads <= 16;
    let fusion = if has_kernel { fusion } else { Fusion::Never };
    Attention::with_fusion(&gpu.cuda, config, limits(case), fusion)
        .unwrap_or_else(|error| panic!("{error}: {:?}", case.spec))
}

pub(crate) fn answer_with(gpu: &Gpu, case: &Case, attention: &mut Attention) -> Answer {
    let what = |error: Error| -> ! { panic!("{error}: {:?}", case.spec) };
    let on_device = OnDevice::new(gpu, case);
    let mut step = StepBuffer::new(&gpu.cuda, *attention.limits(), &[attention])
        .unwrap_or_else(|error| what(error));
    let blocks = case.cache.layout.num_blocks;
    attention.plan(case.batch(), blocks, case.kernel_mask()).unwrap_or_else(|error| what(error));
    let arrays = StepArrays::new(case.batch());
    step.upload(&gpu.stream, &arrays, &[attention]).unwrap_or_else(|error| what(error));
    // SAFETY: all memory lives until the stream is done.
    unsafe { attention.run(&gpu.stream, &step, 0, &on_device.args) }
        .unwrap_or_else(|error| what(error));
    gpu.stream
        .synchronize()
        .unwrap_or_else(|error| panic!("{error}: {:?}\n{}", case.spec, gpu.reports().join("\n")));
    on_device.answer(gpu, case)
}

/// Types that GPUs have kernels for.
pub(crate) const TYPES: [(DType, DType); 4] = [
    (DType::F16, DType::F16),
    (DType::Bf16, DType::Bf16),
    (DType::F16, DType::Fp8E4m3),
    (DType::Bf16, DType::Fp8E4m3),
];
