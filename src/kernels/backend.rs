//! The kernels of a device, whichever it is.

#[cfg(feature = "cuda-driver")]
use std::sync::Arc;

use super::args::{AppendArgs, AttentionArgs, State, Workspace};
#[cfg(feature = "cuda-driver")]
use super::cuda;
use super::kv::DeviceCache;
use super::tensor::DeviceTensor;
use super::{AttentionConfig, BatchView, Mask, StepLimits, StepSource, cpu};
use crate::cache::BlockOp;
use crate::device::cpu::Cpu;
#[cfg(feature = "cuda-driver")]
use crate::device::queue;
use crate::device::{Device, Stream};
use crate::error::{Error, Result};

/// A device and its kernels: a handle, whose clones share what is loaded.
#[derive(Clone, Debug)]
pub struct Backend {
    device: Device,
    /// Of a GPU, those that are for no attention in particular.
    #[cfg(feature = "cuda-driver")]
    loaded: Arc<cuda::Loaded>,
}

impl Backend {
    /// Nothing is loaded yet.
    pub fn new(device: impl Into<Device>) -> Self {
        Self {
            device: device.into(),
            #[cfg(feature = "cuda-driver")]
            loaded: Arc::default(),
        }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Merges states over disjoint keys, in the order given, into the attention over all of them:
    /// see [`cpu::merge`]. `lse` is the address of the result's, or 0.
    ///
    /// A GPU's states are at most 16, of one type and with the same strides. The first merge of a type
    /// loads a kernel, which is not for a capture.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `states`, `o`, `lse`, `dtype` or `stream`;
    /// [`Error::Forked`]; [`Error::NoKernelImage`]; what the driver refuses. Nothing is written then.
    ///
    /// # Safety
    /// * LSE are the addresses of a number for each token and head, until the work is done and
    ///   whenever a graph with it is launched; that of the result may be 0.
    /// * The result's LSE is not that of a state. On a processor its outputs are not a state's either.
    pub unsafe fn merge(
        &self,
        stream: Stream<'_>,
        states: &[State],
        o: DeviceTensor,
        lse: u64,
    ) -> Result<()> {
        match &self.device {
            Device::Cpu(cpu) => {
                no_stream(stream)?;
                // SAFETY: as the caller promises.
                unsafe { cpu::merge_at(cpu, states, &o, lse) }
            }
            #[cfg(feature = "cuda-driver")]
            Device::Cuda(cuda) => {
                let kernel = self.loaded.merge(cuda, o.dtype())?;
                // SAFETY: as the caller promises.
                unsafe { kernel.run(queue(stream)?, states, o, lse) }
            }
        }
    }
}

/// Refuses streams for processors: work that is meant to be behind other work would not be.
fn no_stream(stream: Stream<'_>) -> Result<()> {
    match stream {
        None => Ok(()),
        Some(_) => Err(Error::argument("stream", "a processor has no streams")),
    }
}

#[cfg(feature = "cuda-driver")]
fn other_device(field: &'static str) -> Error {
    Error::argument(field, "is of another device")
}

/// Varlen paged attention for one attention group of a model: prefill, chunked prefill, decode and
/// any mixture of them.
///
/// [`plan`](Self::plan) and [`StepBuffer::upload`] once per step, then [`run`](Self::run) once per layer.
/// The same plan gives the same bits; with [`fixed_split`](AttentionConfig::fixed_split) a row's bits
/// are the same in any batch.
#[derive(Debug)]
pub enum Attention {
    /// On a processor.
    Cpu(Box<cpu::Attention>),
    /// On a GPU.
    #[cfg(feature = "cuda-driver")]
    Cuda(Box<cuda::Attention>),
}

impl Attention {
    /// For steps within `limits`. A GPU loads kernels, and takes the memory of split tiles from
    /// `workspace` or allocates it; a processor's memory grows with the steps.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `config` or `limits`, `workspace.bytes` where it
    /// is smaller than [`workspace_bytes`](Self::workspace_bytes), or `workspace` where it is not at a
    /// multiple of 16, not memory that the device can reach, or a processor's;
    /// [`Error::NoKernelImage`]; [`Error::OutOfDeviceMemory`]; what the driver refuses.
    pub fn new(
        backend: &Backend,
        config: AttentionConfig,
        limits: StepLimits,
        workspace: Option<Workspace>,
    ) -> Result<Self> {
        match &backend.device {
            Device::Cpu(_) if workspace.is_some() => {
                Err(Error::argument("workspace", "a processor takes no workspace"))
            }
            Device::Cpu(cpu) => Ok(Self::Cpu(Box::new(cpu::Attention::new(cpu, config, limits)?))),
            #[cfg(feature = "cuda-driver")]
            Device::Cuda(cuda) => {
                let fusion = cuda::Fusion::default();
                let made = cuda::Attention::with(cuda, config, limits, fusion, workspace)?;
                Ok(Self::Cuda(Box::new(made)))
            }
        }
    }

    /// Bytes of the [`Workspace`] that such an attention takes; 0 on a processor. Loads the kernels of
    /// a GPU, on whose occupancy it depends; they stay loaded.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn workspace_bytes(
        backend: &Backend,
        config: &AttentionConfig,
        limits: &StepLimits,
    ) -> Result<usize> {
        match &backend.device {
            // All that it would refuse later it refuses now.
            Device::Cpu(cpu) => cpu::Attention::new(cpu, *config, *limits).map(|_| 0),
            #[cfg(feature = "cuda-driver")]
            Device::Cuda(cuda) => {
                cuda::Attention::workspace_bytes(cuda, config, limits, cuda::Fusion::default())
            }
        }
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &AttentionConfig {
        match self {
            Self::Cpu(attention) => attention.config(),
            #[cfg(feature = "cuda-driver")]
            Self::Cuda(attention) => attention.config(),
        }
    }

    /// Forgets the plan made last.
    pub(crate) fn forget_plan(&mut self) {
        match self {
            Self::Cpu(attention) => attention.forget_plan(),
            #[cfg(feature = "cuda-driver")]
            Self::Cuda(attention) => attention.forget_plan(),
        }
    }

    /// Divides a step's work among the device's cores or multiprocessors, for caches of at least
    /// `num_blocks` blocks. The mask is copied.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the array of `batch` or `mask`, or `limits` where the step is
    /// larger; [`Error::OutOfMemory`]. There is no plan then.
    pub fn plan(
        &mut self,
        batch: BatchView<'_>,
        num_blocks: usize,
        mask: Option<Mask<'_>>,
    ) -> Result<()> {
        match self {
            Self::Cpu(attention) => attention.plan(batch, num_blocks, mask),
            #[cfg(feature = "cuda-driver")]
            Self::Cuda(attention) => attention.plan(batch, num_blocks, mask),
        }
    }

    /// Computes, or queues, a layer's attention for the step in `step`; `group` is its place among the
    /// groups that the step was uploaded with.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `args`, `stream`, `plan` where none was made, or
    /// `step` or `group` where its upload was not of the plan made last; [`Error::Forked`]; what the
    /// driver refuses. Nothing is written then.
    ///
    /// # Safety
    /// * The addresses among `args` are 0, or those of as many numbers as they are said to have, which
    ///   nothing else writes, nor reads where they are written, until the work is done; in capture the
    ///   LSE's of as many as the limits' tokens have. Those of a processor were exposed.
    /// * On a GPU, as `cuda::Attention::run`.
    pub unsafe fn run(
        &self,
        stream: Stream<'_>,
        step: &StepBuffer,
        group: usize,
        args: &AttentionArgs,
    ) -> Result<()> {
        match (self, &step.kind) {
            (Self::Cpu(attention), Kind::Cpu(_, step)) => {
                no_stream(stream)?;
                // SAFETY: as the caller promises.
                unsafe { attention.run_at(step, group, args) }
            }
            #[cfg(feature = "cuda-driver")]
            (Self::Cuda(attention), Kind::Cuda(step)) => {
                // SAFETY: as the caller promises.
                unsafe { attention.run(queue(stream)?, step, group, args) }
            }
            #[cfg(feature = "cuda-driver")]
            _ => Err(other_device("step")),
        }
    }
}

/// A step's arrays and plans, where kernels read them: on a GPU in device memory at an address that
/// stays, so that a captured graph serves every step.
#[derive(Debug)]
pub struct StepBuffer {
    kind: Kind,
    #[cfg(feature = "cuda-driver")]
    loaded: Arc<cuda::Loaded>,
}

#[derive(Debug)]
enum Kind {
    Cpu(Cpu, Box<cpu::StepBuffer>),
    #[cfg(feature = "cuda-driver")]
    Cuda(Box<cuda::StepBuffer>),
}

impl StepBuffer {
    /// Room for steps within `limits` and the plans of `groups`, at most four, each of which was made
    /// for these very limits. On a GPU it loads the kernels that append and merge their types, so that
    /// none is loaded in a capture.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `limits`, or `groups`;
    /// [`Error::NoKernelImage`]; [`Error::OutOfDeviceMemory`]; what the driver refuses.
    pub fn new<'g>(
        backend: &Backend,
        limits: StepLimits,
        groups: impl IntoIterator<Item = &'g Attention>,
    ) -> Result<Self> {
        let groups: Vec<&Attention> = groups.into_iter().collect();
        let kind = match &backend.device {
            Device::Cpu(cpu) => {
                let groups: Vec<_> = groups.iter().copied().filter_map(on_cpu).collect();
                Kind::Cpu(cpu.clone(), Box::new(cpu::StepBuffer::new(limits, &groups)?))
            }
            #[cfg(feature = "cuda-driver")]
            Device::Cuda(cuda) => {
                let groups: Vec<_> = groups.iter().copied().filter_map(on_cuda).collect();
                for AttentionConfig { q_dtype, kv_dtype, .. } in groups.iter().map(|g| *g.config())
                {
                    backend.loaded.append(cuda, q_dtype, kv_dtype)?;
                    backend.loaded.merge(cuda, q_dtype)?;
                }
                Kind::Cuda(Box::new(cuda::StepBuffer::new(cuda, limits, &groups)?))
            }
        };
        let made = Self {
            kind,
            #[cfg(feature = "cuda-driver")]
            loaded: Arc::clone(&backend.loaded),
        };
        made.check_device(groups.into_iter())?;
        Ok(made)
    }

    /// Refuses groups of another device, which would else be left out.
    fn check_device<'g>(&self, mut groups: impl Iterator<Item = &'g Attention>) -> Result<()> {
        let is_ours = |group: &Attention| match (&self.kind, group) {
            (Kind::Cpu(cpu, _), Attention::Cpu(attention)) => attention.cpu().is(cpu),
            #[cfg(feature = "cuda-driver")]
            (Kind::Cuda(_), Attention::Cuda(_)) => true,
            #[cfg(feature = "cuda-driver")]
            _ => false,
        };
        match groups.all(is_ours) {
            true => Ok(()),
            false => Err(Error::argument("groups", "one is of another device")),
        }
    }

    /// Takes a step: its arrays, and the plans of `groups` made last, with their masks. On a GPU it
    /// queues one copy, not in capture, and waits where four uploads before it are not done yet.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `limits` where the step is larger, the array that does not fit
    /// the batch, `groups` where one has no plan of this batch or is of another device, or `stream`,
    /// the step before being there still; what the driver refuses.
    pub fn upload<'a, 'g>(
        &mut self,
        stream: Stream<'_>,
        step: impl Into<StepSource<'a>>,
        groups: impl Iterator<Item = &'g Attention> + Clone,
    ) -> Result<()> {
        self.check_device(groups.clone())?;
        let step = step.into();
        match &mut self.kind {
            Kind::Cpu(_, buffer) => {
                no_stream(stream)?;
                buffer.upload_of(&step, groups.filter_map(on_cpu))
            }
            #[cfg(feature = "cuda-driver")]
            Kind::Cuda(buffer) => {
                buffer.upload_of(queue(stream)?, &step, groups.filter_map(on_cuda))
            }
        }
    }

    /// Writes the new keys and values of a layer to the slots of the step uploaded last, rotated and
    /// quantised on the way where asked. The bytes stored are the same on every device.
    ///
    /// A GPU queues it, in capture too; the first call for a pair of types that no group of the buffer
    /// has loads a kernel, which is not for a capture.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `args`, `slot_mapping` or `positions` where the
    /// step's are missing or out of range, `new` where no kernel has the types, or `stream`;
    /// [`Error::Forked`]; [`Error::NoKernelImage`]; what the driver refuses. Nothing is written then.
    ///
    /// # Safety
    /// * The table has `max_position` rows. Of a processor, its address was exposed.
    /// * On a GPU, as `cuda::Append::run`.
    pub unsafe fn append(&self, stream: Stream<'_>, args: &AppendArgs) -> Result<()> {
        match &self.kind {
            Kind::Cpu(cpu, step) => {
                no_stream(stream)?;
                // SAFETY: as the caller promises.
                unsafe { step.append_at(cpu, args) }
            }
            #[cfg(feature = "cuda-driver")]
            Kind::Cuda(step) => {
                args.cache.check_on_gpu()?;
                let types = (args.k.dtype(), args.cache.layout().dtype);
                let kernel = self.loaded.append(step.cuda(), types.0, types.1)?;
                // SAFETY: as the caller promises.
                unsafe { kernel.run(queue(stream)?, step, args) }
            }
        }
    }
}

fn on_cpu(group: &Attention) -> Option<&cpu::Attention> {
    match group {
        Attention::Cpu(attention) => Some(attention),
        #[cfg(feature = "cuda-driver")]
        Attention::Cuda(_) => None,
    }
}

#[cfg(feature = "cuda-driver")]
fn on_cuda(group: &Attention) -> Option<&cuda::Attention> {
    match group {
        Attention::Cuda(attention) => Some(attention),
        Attention::Cpu(_) => None,
    }
}

/// Carries out steps' block operations on every layer's K and V.
#[derive(Debug)]
pub enum BlockMover {
    /// On a processor: the caches of all layers, and their counterparts in the host's pool.
    Cpu(Cpu, [Vec<DeviceCache>; 2]),
    /// On a GPU.
    #[cfg(feature = "cuda-driver")]
    Cuda(Box<cuda::BlockMover>),
}

impl BlockMover {
    /// For the caches of all layers and, where operations swap, their counterparts in the host's pool.
    /// On a GPU these are page-locked memory, all have one shape, and blocks are contiguous.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `device` or `host`; [`Error::NoKernelImage`];
    /// [`Error::OutOfDeviceMemory`]; what the driver refuses.
    pub fn new(backend: &Backend, device: &[DeviceCache], host: &[DeviceCache]) -> Result<Self> {
        match &backend.device {
            Device::Cpu(cpu) => {
                // Without operations all is checked, and nothing done.
                cpu::move_blocks_at(cpu, &[], device, host)?;
                Ok(Self::Cpu(cpu.clone(), [device.to_vec(), host.to_vec()]))
            }
            #[cfg(feature = "cuda-driver")]
            Device::Cuda(cuda) => {
                Ok(Self::Cuda(Box::new(cuda::BlockMover::new(cuda, device, host)?)))
            }
        }
    }

    /// Carries out operations, with the result of doing so in order. A GPU queues them, not in capture,
    /// and waits where four calls before are not done yet.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `ops`, `host` where one swaps and there is none, or `stream`,
    /// nothing being copied then; [`Error::Forked`]; what the driver refuses.
    pub fn run(&mut self, stream: Stream<'_>, ops: &[BlockOp]) -> Result<()> {
        match self {
            Self::Cpu(cpu, [device, host]) => {
                no_stream(stream)?;
                cpu::move_blocks_at(cpu, ops, device, host)
            }
            #[cfg(feature = "cuda-driver")]
            Self::Cuda(mover) => mover.run(queue(stream)?, ops),
        }
    }
}
