//! The memory of split tiles' states: how much of it there is, and whose.

use std::sync::Arc;

use super::mixed::{Fusion, Mixed};
use super::sides::{Side, Sides};
use crate::device::cuda::{Cuda, CudaBuffer, CudaStream, Kernels, check_alignment, check_pointer};
use crate::error::{Error, Result};
use crate::kernels::{AttentionConfig, StepLimits, Workspace};

impl Workspace {
    /// Whether kernels of the device can use the first `needed` bytes, as far as the driver says.
    pub(super) fn check(&self, cuda: &Cuda, needed: usize) -> Result<()> {
        if self.bytes() < needed {
            let reason = format!("are {}, and {needed} are needed", self.bytes());
            return Err(Error::argument("workspace.bytes", reason));
        }
        let Some(last) = needed.checked_sub(1) else { return Ok(()) };
        check_alignment("workspace", self.address(), &[])?;
        check_pointer(cuda, "workspace", self.address())?;
        let Some(last) = self.address().checked_add(last as u64) else {
            return Err(Error::argument("workspace", "does not fit the memory"));
        };
        check_pointer(cuda, "workspace", last)
    }
}

/// The kernels of an attention, and the states of the plans that they may be given.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) decode: Side,
    pub(super) prefill: Side,
    pub(super) mixed: Option<Mixed>,
    /// Queries of a row that `decode` takes at most.
    pub(super) few: u32,
    pub(super) states: States,
}

impl Loaded {
    /// # Errors
    /// As [`Attention::with`](super::Attention::with).
    pub(super) fn new(
        cuda: &Arc<Cuda>,
        config: &AttentionConfig,
        limits: &StepLimits,
        fusion: Fusion,
    ) -> Result<Self> {
        config.check()?;
        limits.check()?;
        let sides = Sides::new(config, cuda.info())?;
        let kernels = Kernels::new(cuda);
        let decode = sides.decode(&kernels, limits)?;
        let prefill = sides.prefill(&kernels, limits)?;
        let mixed = Mixed::new(&kernels, fusion, &sides, &decode, &prefill)?;
        let states = States::new(config, &decode, &prefill, mixed.is_some()).ok_or_else(|| {
            Error::argument("limits", "the states of their steps do not fit 64 bits")
        })?;
        Ok(Self { decode, prefill, mixed, few: sides.few, states })
    }
}

/// The states of both sides: all outputs, and behind them all maxima and sums.
#[derive(Clone, Copy, Debug)]
pub(super) struct States {
    /// Bytes of the outputs: a multiple of 16, as a head's are.
    o: usize,
    /// Bytes of the maxima and sums.
    ml: usize,
    /// Where the outputs of prefill's begin, and its maxima and sums behind `o`.
    prefill: [usize; 2],
}

impl States {
    /// `None` where they do not fit 64 bits.
    fn new(config: &AttentionConfig, decode: &Side, prefill: &Side, mixed: bool) -> Option<Self> {
        let (few, many) = (decode.bounds.states, prefill.bounds.states);
        // One after the other they share their states; at once they must not. A graph's launches
        // keep the addresses, so these go by the bounds and not by the plans.
        let before = if mixed { few } else { 0 };
        let most = before.checked_add(many)?.max(few);
        let bytes = |states: u64, numbers: usize| {
            let each = config.group_size() * numbers * size_of::<f32>();
            usize::try_from(states).ok()?.checked_mul(each)
        };
        let (o, ml) = (bytes(most, config.head_dim)?, bytes(most, 2)?);
        o.checked_add(ml)?;
        Some(Self { o, ml, prefill: [bytes(before, config.head_dim)?, bytes(before, 2)?] })
    }

    pub(super) fn bytes(&self) -> usize {
        self.o + self.ml
    }
}

/// What runs keep in device memory.
#[derive(Debug)]
pub(super) struct Scratch {
    states: States,
    workspace: Workspace,
    /// The workspace's memory, where it is not the caller's.
    _owned: Option<CudaBuffer>,
    /// Parts that have arrived at each merge of decode, and then of prefill: 0 between launches.
    arrived: CudaBuffer,
    decode_merges: u64,
}

impl Scratch {
    /// States in `given`, or memory of its own.
    ///
    /// # Errors
    /// As [`Attention::with`](super::Attention::with).
    pub(super) fn new(cuda: &Arc<Cuda>, loaded: &Loaded, given: Option<Workspace>) -> Result<Self> {
        let Loaded { decode, prefill, states, .. } = loaded;
        let (workspace, owned) = match given {
            Some(given) => {
                given.check(cuda, states.bytes())?;
                (given, None)
            }
            None => {
                let owned = CudaBuffer::new(cuda, states.bytes())?;
                // SAFETY: it is freed with what is made here, and its address is known nowhere else.
                (unsafe { Workspace::new(owned.address(), owned.len()) }, Some(owned))
            }
        };
        let merges = (decode.bounds.merges + prefill.bounds.merges) as usize;
        let arrived = CudaBuffer::new(cuda, merges.max(1) * size_of::<u32>())?;
        let stream = CudaStream::new(cuda)?;
        stream.fill(&arrived, 0, arrived.len(), 0)?;
        stream.synchronize()?;
        let decode_merges = decode.bounds.merges;
        Ok(Self { states: *states, workspace, _owned: owned, arrived, decode_merges })
    }

    pub(super) fn cuda(&self) -> &Arc<Cuda> {
        self.arrived.cuda()
    }

    /// Addresses of a side's outputs, of its maxima and sums, and of its counters.
    pub(super) fn addresses(&self, prefill: bool) -> [u64; 3] {
        let base = self.workspace.address();
        let ([o, ml], merges) = match prefill {
            true => (self.states.prefill, self.decode_merges),
            false => ([0, 0], 0),
        };
        let arrived = self.arrived.address() + merges * size_of::<u32>() as u64;
        [base + o as u64, base + (self.states.o + ml) as u64, arrived]
    }
}
