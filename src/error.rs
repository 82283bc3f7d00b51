//! One error type, and the status numbers it has in C.

use std::fmt;

use crate::types::{RequestId, StepId};

/// What can go wrong. The state it was raised from is unchanged, unless the call says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A parameter is outside its range.
    InvalidArgument {
        /// The field at fault, as it is spelt in the API.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A request of this id has not finished yet.
    DuplicateRequest(RequestId),
    /// No request of this id is waiting or running.
    UnknownRequest(RequestId),
    /// The prompt leaves no room for one output token below `max_model_len`.
    PromptTooLong {
        /// The request.
        id: RequestId,
        /// Its prompt, in tokens.
        prompt_len: usize,
        /// The limit, in tokens of prompt and output together.
        max_model_len: usize,
        /// The cache's blocks, where the limit is what they hold.
        blocks: Option<usize>,
    },
    /// The request would not fit even if it had the whole cache to itself.
    NeverFits {
        /// The request.
        id: RequestId,
        /// Blocks it may come to need.
        needed: usize,
        /// Blocks there are.
        usable: usize,
    },
    /// The waiting queue is at `max_waiting`: retry when requests have been admitted.
    QueueFull {
        /// The limit.
        max_waiting: usize,
    },
    /// The pool cannot give that many blocks now: retry when some have been freed.
    OutOfBlocks {
        /// The pool.
        pool: Pool,
        /// Blocks asked for.
        needed: usize,
        /// Blocks free.
        free: usize,
    },
    /// The process has too little memory left for what was asked.
    OutOfMemory {
        /// Bytes of the allocation that failed.
        bytes: usize,
    },
    /// `max_steps_in_flight` steps await their commit.
    TooManyStepsInFlight {
        /// The limit.
        limit: usize,
    },
    /// The step is not in flight: never scheduled, or already committed or abandoned.
    UnknownStep(StepId),
    /// Steps are committed oldest first and abandoned newest first.
    StepOutOfOrder {
        /// The step named by the caller.
        step: StepId,
        /// The step whose turn it is.
        expected: StepId,
    },
    /// The outputs do not match the rows of the step.
    OutputMismatch {
        /// The step.
        step: StepId,
        /// Rows that sample in it.
        expected: usize,
        /// Rows given.
        given: usize,
    },
    /// Requests wait, nothing runs, and the policy admits none of them.
    Stalled {
        /// The request at the head of the queue.
        head: RequestId,
        /// Blocks it needs now.
        needed: usize,
        /// Blocks free.
        free: usize,
    },
    /// The scheduler of a [`Submitter`](crate::scheduler::Submitter) is gone.
    Closed,
    /// It was made before a `fork`, by the parent, whose threads this process does not have.
    Forked {
        /// What was made.
        what: &'static str,
    },
    /// An invariant does not hold: a bug in this library or a policy that broke its contract.
    Corrupt(String),
    /// The device could not run the step.
    Device(String),
    /// A call of the CUDA driver failed.
    Cuda(CudaError),
    /// The device has too little memory left.
    OutOfDeviceMemory {
        /// Bytes asked for.
        needed: usize,
        /// Bytes free, in any number of pieces.
        free: usize,
    },
    /// CUDA cannot be used on this machine.
    NoCuda(CudaUnavailable),
    /// This build has no kernels that the device can run.
    NoKernelImage {
        /// What the device is: `sm_75`.
        device: String,
        /// What kernels were compiled for: `sm_80, sm_90, PTX 8.0, PTX 9.0`; empty where none were.
        built: &'static str,
        /// Why the driver does not take them, where it is older than they need.
        outdated: Option<OutdatedDriver>,
    },
}

/// Where blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// The pool that kernels read.
    Device,
    /// The pool that sequences are swapped to.
    Host,
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "device",
            Self::Host => "host",
        })
    }
}

/// What a call of the CUDA driver returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaError {
    /// The function called.
    pub call: &'static str,
    /// The driver's number.
    pub code: u32,
    /// Its name: `CUDA_ERROR_ILLEGAL_ADDRESS`.
    pub name: String,
    /// What it means, in the driver's words.
    pub meaning: String,
    /// Whether every later call in this process fails as well: a kernel has done something that
    /// cannot be undone, before this call and maybe long before it.
    pub sticky: bool,
}

/// A driver that is older than the kernels of this build need. Versions are as CUDA counts: 13000 is
/// 13.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutdatedDriver {
    /// The toolkit that compiled the kernels.
    pub toolkit: i32,
    /// What the driver must offer. Above the first version of the toolkit's major version where the
    /// driver would compile PTX, which it reads up to its own version.
    pub needed: i32,
    /// What it offers.
    pub found: i32,
}

/// Why CUDA cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CudaUnavailable {
    /// The library was built without the feature `cuda-driver`.
    NotBuilt,
    /// The system finds no libcuda, or one that only helps to link.
    NoDriver {
        /// What the system says.
        reason: String,
    },
    /// The driver finds no GPU.
    NoDevice,
    /// The driver is older than the CUDA version that the library needs.
    DriverTooOld {
        /// The version it offers, as CUDA counts: 13000 is 13.0.
        found: i32,
        /// The version needed.
        needed: i32,
    },
    /// A function is missing from the driver.
    MissingSymbol {
        /// Its name.
        name: &'static str,
    },
    /// A parent of this process has used CUDA before `fork`, and the driver is not for its children.
    Forked,
    /// The driver failed before any device was in use.
    Failed(CudaError),
}

impl Error {
    /// An [`Error::InvalidArgument`].
    pub(crate) fn argument(field: &'static str, reason: impl Into<String>) -> Self {
        Self::InvalidArgument { field, reason: reason.into() }
    }

    /// The request that it is about, where it is about one.
    #[must_use]
    pub fn request(&self) -> Option<RequestId> {
        match *self {
            Self::DuplicateRequest(id)
            | Self::UnknownRequest(id)
            | Self::PromptTooLong { id, .. }
            | Self::NeverFits { id, .. }
            | Self::Stalled { head: id, .. } => Some(id),
            _ => None,
        }
    }

    /// The number this error has in C: 1xx argument, 2xx capacity (retry later), 3xx device,
    /// 9xx internal. Numbers are never reused.
    #[must_use]
    pub fn status(&self) -> i32 {
        match self {
            Self::InvalidArgument { .. } => 100,
            Self::DuplicateRequest(_) => 101,
            Self::UnknownRequest(_) => 102,
            Self::PromptTooLong { .. } => 103,
            Self::NeverFits { .. } => 104,
            Self::UnknownStep(_) => 105,
            Self::StepOutOfOrder { .. } => 106,
            Self::OutputMismatch { .. } => 107,
            Self::Closed => 110,
            Self::Forked { .. } => 111,
            Self::QueueFull { .. } => 200,
            Self::OutOfBlocks { .. } => 201,
            Self::TooManyStepsInFlight { .. } => 202,
            Self::Stalled { .. } => 203,
            Self::OutOfMemory { .. } => 204,
            Self::Device(_) => 300,
            Self::Cuda(_) => 301,
            Self::OutOfDeviceMemory { .. } => 302,
            Self::NoCuda(_) => 303,
            Self::NoKernelImage { .. } => 304,
            Self::Corrupt(_) => 900,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidArgument { field, reason } => write!(f, "{field}: {reason}"),
            Self::DuplicateRequest(id) => write!(f, "request {id} is already waiting or running"),
            Self::UnknownRequest(id) => write!(f, "request {id} is neither waiting nor running"),
            Self::PromptTooLong { id, prompt_len, max_model_len, blocks } => {
                write!(
                    f,
                    "request {id}: a prompt of {prompt_len} tokens leaves no room for output below \
                     max_model_len {max_model_len}"
                )?;
                blocks.map_or(Ok(()), |blocks| write!(f, " (all that {blocks} blocks hold)"))
            }
            Self::NeverFits { id, needed, usable } => write!(
                f,
                "request {id} may come to need {needed} blocks, and the cache has {usable}"
            ),
            Self::QueueFull { max_waiting } => {
                write!(f, "max_waiting: {max_waiting} requests are waiting already")
            }
            Self::OutOfBlocks { pool, needed, free } => {
                write!(f, "{needed} {pool} blocks are needed and {free} are free")
            }
            Self::OutOfMemory { bytes } => {
                write!(f, "{bytes} bytes of memory are needed, and the system has too few")
            }
            Self::TooManyStepsInFlight { limit } => {
                write!(f, "max_steps_in_flight: {limit} steps await their commit")
            }
            Self::UnknownStep(step) => write!(f, "step {step} is not in flight"),
            Self::StepOutOfOrder { step, expected } => {
                write!(f, "step {step} was named where step {expected} is due")
            }
            Self::OutputMismatch { step, expected, given } => {
                write!(f, "step {step} samples {expected} rows, and samples of {given} came")
            }
            Self::Stalled { head, needed, free } if needed <= free => write!(
                f,
                "nothing runs and the policy admits no request: request {head} needs {needed} blocks, \
                 and {free} are free"
            ),
            Self::Stalled { head, needed, free } => write!(
                f,
                "nothing runs and nothing is admitted: request {head} needs {needed} blocks, \
                 {free} are free"
            ),
            Self::Closed => write!(f, "the submitter's scheduler is gone"),
            Self::Forked { what } => {
                write!(f, "{what} was made before fork(): make another in this process")
            }
            Self::Corrupt(what) => write!(f, "broken invariant: {what}"),
            Self::Device(what) => write!(f, "device: {what}"),
            Self::Cuda(error) => error.fmt(f),
            Self::OutOfDeviceMemory { needed, free } => {
                write!(f, "{needed} bytes of device memory are needed, and {free} are free")
            }
            Self::NoCuda(why) => why.fmt(f),
            Self::NoKernelImage { device, built: "", .. } => {
                write!(f, "no kernel image for {device}: built without kernels (feature `cuda`)")
            }
            Self::NoKernelImage { device, built, outdated: None } => {
                write!(f, "no kernel image for {device}: this build has {built}")
            }
            Self::NoKernelImage { device, built, outdated: Some(driver) } => {
                let OutdatedDriver { toolkit, needed, found } = *driver;
                let [toolkit_version, found_version] = [toolkit, found].map(Version);
                write!(f, "no kernel image for {device}: ")?;
                if found / 1000 < toolkit / 1000 {
                    return write!(
                        f,
                        "kernel images were built with CUDA {toolkit_version} and need {}; this \
                         driver offers CUDA {found_version}: update the driver, or build with a \
                         {}.x toolkit",
                        Release(needed),
                        found / 1000
                    );
                }
                write!(
                    f,
                    "this build has {built}, whose PTX was made with CUDA {toolkit_version} and \
                     needs {}; this driver offers CUDA {found_version}: update the driver, or \
                     build with INFLIGHT_CUDA_ARCHS naming {}",
                    Release(needed),
                    device.trim_start_matches("sm_")
                )
            }
        }
    }
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, code, name, meaning, sticky } = self;
        write!(f, "{call}: {name} ({code}), {meaning}")?;
        if *sticky {
            write!(f, "; the process must be restarted to use CUDA again")?;
        }
        Ok(())
    }
}

impl fmt::Display for CudaUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBuilt => write!(f, "built without the feature `cuda-driver`"),
            Self::NoDriver { reason } => write!(f, "no CUDA driver: {reason}"),
            Self::NoDevice => write!(f, "the CUDA driver finds no device"),
            Self::DriverTooOld { found, needed } => write!(
                f,
                "the CUDA driver offers CUDA {}, and {} is needed: update to {}",
                Version(*found),
                Version(*needed),
                Release(*needed)
            ),
            Self::MissingSymbol { name } => write!(
                f,
                "the CUDA driver has no function `{name}`, as drivers since CUDA 12.4 have: update \
                 or reinstall it"
            ),
            Self::Forked => write!(
                f,
                "CUDA was used before fork(), and its driver does not work in the child: start this \
                 process with exec (`spawn` in Python's multiprocessing)"
            ),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

/// A version as CUDA counts, in words: 13000 is `13.0`.
struct Version(i32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

/// The drivers that offer a version: by the number of their release, where it is one that the
/// library asks for.
struct Release(i32);

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            12_040 => f.write_str("driver 550 or later"),
            13_000 => f.write_str("driver 580 or later"),
            other => write!(f, "a driver that offers CUDA {}", Version(other)),
        }
    }
}

impl std::error::Error for Error {}
impl std::error::Error for CudaError {}
impl std::error::Error for CudaUnavailable {}

/// The result of a fallible call.
pub type Result<T, E = Error> = std::result::Result<T, E>;
