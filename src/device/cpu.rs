//! The CPU as a device: its instruction set and a pool of threads.

use std::fmt;
use std::mem::ManuallyDrop;
use std::str::FromStr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuilder};

use super::fork::Generation;
use crate::error::{Error, Result};

/// What instructions kernels use; all give the same results within rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 F, BW, DQ, VL and BF16: dot products of bf16 pairs.
    Avx512Bf16,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// NEON.
    Neon,
    /// Plain Rust, four lanes.
    Portable,
    /// Plain Rust that does what [`Avx512Bf16`](Self::Avx512Bf16) does, to test its algorithm
    /// where the instructions are missing; never chosen by itself.
    PortableBf16,
}

impl Isa {
    /// All there are, best first.
    pub const ALL: [Self; 6] = [
        Self::Avx512Bf16,
        Self::Avx512,
        Self::Avx2,
        Self::Neon,
        Self::Portable,
        Self::PortableBf16,
    ];

    /// Its name, as `inflight info` prints it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Portable => "portable",
            Self::PortableBf16 => "portable-bf16",
        }
    }

    /// Whether this processor has it.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable | Self::PortableBf16 => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => {
                Self::Avx512.is_available() && is_x86_feature_detected!("avx512bf16")
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[allow(unreachable_patterns, reason = "which are left depends on the target")]
            _ => false,
        }
    }

    /// The best this processor has.
    #[must_use]
    pub fn best() -> Self {
        let best = Self::ALL.into_iter().find(|isa| isa.is_available());
        best.unwrap_or(Self::Portable)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Isa {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            Error::argument("isa", format!("`{name}` is not one of {known}"))
        })
    }
}

/// How many threads, where, and with which instructions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuConfig {
    /// Threads of the pool; `None` for one per core that this process may use.
    pub threads: Option<usize>,
    /// Cores to pin the threads to, one each, in order; `None` leaves them to the system. Linux
    /// only.
    pub cores: Option<Vec<usize>>,
    /// `None` for the best there is.
    pub isa: Option<Isa>,
}

/// A CPU, ready to run kernels: a pool of threads that sleep between calls.
///
/// Threads may share one: calls block until their work is done, and take turns with those of others
/// for the pool's threads. Small calls run on the caller's thread. More threads than cores only
/// cost.
///
/// Clones are the same, and have one pool. Its threads have ended when the last has been dropped.
/// They are not there after a `fork`: in the child, kernels return [`Error::Forked`] with it, and it
/// may be dropped. Make another there.
#[derive(Clone)]
pub struct Cpu(Arc<Pool>);

struct Pool {
    pool: ManuallyDrop<ThreadPool>,
    threads: ManuallyDrop<Threads>,
    isa: Isa,
    made_in: Generation,
}

impl Drop for Pool {
    fn drop(&mut self) {
        if !self.made_in.is_current() {
            // The pool's locks may be held, and the threads waited for, for ever: both are left.
            return;
        }
        // In this order: a pool tells its threads to end, and does not wait for them.
        // SAFETY: neither is used after this.
        unsafe { ManuallyDrop::drop(&mut self.pool) };
        // SAFETY: as above.
        unsafe { ManuallyDrop::drop(&mut self.threads) };
    }
}

/// The pool's threads, waited for when this is dropped.
#[derive(Default)]
struct Threads(Vec<JoinHandle<()>>);

impl Threads {
    fn start(&mut self, worker: ThreadBuilder) -> std::io::Result<()> {
        let name = format!("inflight-{}", worker.index());
        self.0.push(thread::Builder::new().name(name).spawn(|| worker.run())?);
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let own = thread::current().id();
        for worker in self.0.drain(..).filter(|worker| worker.thread().id() != own) {
            // Their panics have been told where they came from.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cpu").field("threads", &self.threads()).field("isa", &self.isa()).finish()
    }
}

impl Cpu {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `threads`, `cores` or `isa`; [`Error::Device`] when
    /// threads cannot be started or pinned.
    pub fn new(config: &CpuConfig) -> Result<Self> {
        let isa = config.isa.unwrap_or_else(Isa::best);
        if !isa.is_available() {
            return Err(Error::argument("isa", format!("this processor has no {isa}")));
        }
        let threads = match (config.threads, &config.cores) {
            (Some(threads), _) => threads,
            (None, Some(cores)) => cores.len(),
            (None, None) => thread::available_parallelism().map_or(1, usize::from),
        };
        if config.cores.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::argument("cores", "at least one is needed"));
        }
        if threads == 0 || threads > 1024 {
            return Err(Error::argument("threads", format!("{threads} is not within 1 to 1024")));
        }
        let cores = config.cores.clone();
        if cores.as_ref().is_some_and(|cores| cores.len() != threads) {
            return Err(Error::argument(
                "cores",
                format!("there must be {threads}, one per thread"),
            ));
        }
        check_cores(cores.as_deref().unwrap_or_default())?;
        // Before the threads: those of a fork in between are not the child's.
        let made_in = Generation::current();
        let mut started = Threads::default();
        let builder = ThreadPoolBuilder::new()
            .num_threads(threads)
            .spawn_handler(|worker| started.start(worker))
            .start_handler(move |i| {
                if let Some(cores) = &cores {
                    pin(cores[i]);
                }
            });
        let pool = builder.build().map_err(|error| Error::Device(error.to_string()))?;
        let (pool, threads) = (ManuallyDrop::new(pool), ManuallyDrop::new(started));
        Ok(Self(Arc::new(Pool { pool, threads, isa, made_in })))
    }

    /// Threads of the pool.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.0.pool.current_num_threads()
    }

    /// The instructions that kernels use.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.0.isa
    }

    /// Whether both are clones of one.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The pool, whether the call is large enough for it or not: whether it can be made does not
    /// depend on that.
    ///
    /// # Errors
    /// [`Error::Forked`] where its threads are those of a parent process.
    pub(crate) fn pool(&self) -> Result<&ThreadPool> {
        match self.0.made_in.is_current() {
            true => Ok(&self.0.pool),
            false => Err(Error::Forked { what: "the CPU" }),
        }
    }
}

/// Refuses cores that this process cannot run on, before any thread starts.
#[cfg(target_os = "linux")]
fn check_cores(cores: &[usize]) -> Result<()> {
    // SAFETY: all zeros is an empty set.
    let mut allowed: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is as large as its size says.
    unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut allowed) };
    for &core in cores {
        // SAFETY: CPU_ISSET checks nothing, so the range is checked first.
        if core >= libc::CPU_SETSIZE as usize || !unsafe { libc::CPU_ISSET(core, &allowed) } {
            return Err(Error::argument("cores", format!("this process has no core {core}")));
        }
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn check_cores(cores: &[usize]) -> Result<()> {
    match cores {
        [] => Ok(()),
        _ => Err(Error::argument("cores", "threads are pinned on Linux only")),
    }
}

#[cfg(target_os = "linux")]
fn pin(core: usize) {
    // SAFETY: all zeros is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `check_cores` found the core within the set.
    unsafe { libc::CPU_SET(core, &mut set) };
    // A core taken away since it was checked leaves the thread where the system likes.
    // SAFETY: the set is as large as its size says; 0 is the calling thread.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
}

#[cfg(not(target_os = "linux"))]
fn pin(_core: usize) {}
