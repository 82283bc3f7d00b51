//! Runs the kernels of `csrc/` on the CPU behind the driver's interface: see the README.
//!
//! [`device`] opens a library whose soname is `libcuda.so`; code that then opens `libcuda.so` by
//! name in the same process, as cudarc does, gets the emulator.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

/// Which of the libraries is opened: one a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As fast as it goes.
    Fast,
    /// Every access of a kernel is checked: races, bounds, initialisation.
    Checking,
    /// What nvcc made of the kernels is executed, and checked likewise: PTX, of the folder that
    /// `INFLIGHT_SIMT_PTX` names, else of `target/ptx`, where `scripts/kernel-ptx` puts it.
    Ptx,
}

/// The environment's variable that names the mode.
pub const MODE: &str = "INFLIGHT_SIMT";

impl Mode {
    /// As [`MODE`] spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Checking => "checking",
            Self::Ptx => "ptx",
        }
    }

    /// What [`MODE`] asks for, else `usual`.
    ///
    /// # Panics
    /// Where it names none.
    #[must_use]
    pub fn asked(usual: Self) -> Self {
        let Ok(name) = std::env::var(MODE) else { return usual };
        let found =
            [Self::Fast, Self::Checking, Self::Ptx].into_iter().find(|mode| mode.name() == name);
        found.unwrap_or_else(|| panic!("{MODE} is {name}, and not fast, checking or ptx"))
    }
}

/// The driver that is emulated: it says that it offers this version of CUDA, and has no function
/// that came later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// 12.3.
    Cuda12_3,
    /// 12.4.
    Cuda12_4,
    /// 12.8.
    Cuda12_8,
    /// 13.0.
    Cuda13_0,
}

impl Driver {
    /// All there are, in order.
    pub const ALL: [Self; 4] = [Self::Cuda12_3, Self::Cuda12_4, Self::Cuda12_8, Self::Cuda13_0];

    /// As [`DRIVER`] spells it: `12.4`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda12_3 => "12.3",
            Self::Cuda12_4 => "12.4",
            Self::Cuda12_8 => "12.8",
            Self::Cuda13_0 => "13.0",
        }
    }

    /// As CUDA counts: 12040 is 12.4.
    #[must_use]
    pub fn version(self) -> i32 {
        match self {
            Self::Cuda12_3 => 12_030,
            Self::Cuda12_4 => 12_040,
            Self::Cuda12_8 => 12_080,
            Self::Cuda13_0 => 13_000,
        }
    }

    /// What [`DRIVER`] asks for, else 13.0.
    ///
    /// # Panics
    /// Where it names none.
    #[must_use]
    pub fn asked() -> Self {
        let Ok(name) = std::env::var(DRIVER) else { return Self::Cuda13_0 };
        let found = Self::ALL.into_iter().find(|driver| driver.name() == name);
        found.unwrap_or_else(|| panic!("{DRIVER} is {name}, and not 12.3, 12.4, 12.8 or 13.0"))
    }
}

/// The environment's variable that names the driver to emulate.
pub const DRIVER: &str = "INFLIGHT_SIMT_DRIVER";

/// What was counted since the start or the last [`Emulator::reset`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Stats {
    /// Switches between threads.
    pub switches: u64,
    /// Operations of a whole warp or warpgroup.
    pub collectives: u64,
    /// Arrivals at barriers.
    pub barriers: u64,
    /// Accesses checked.
    pub accesses: u64,
    /// Accesses that race.
    pub races: u64,
    /// Reads of what was never written.
    pub uninitialised: u64,
    /// Accesses outside of allocations.
    pub out_of_bounds: u64,
    /// Launches that ended early: deadlock, divergence, illegal addresses.
    pub faults: u64,
    /// Kernels run.
    pub launches: u64,
    /// Of them, launched as dependents of the kernel before.
    pub dependents: u64,
    /// Phases of shared memory.
    pub bank_phases: u64,
    /// Phases that bank conflicts added.
    pub bank_conflicts: u64,
}

/// What has been made and not been given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Alive {
    /// Bytes of device memory.
    pub device_bytes: u64,
    /// Bytes of page-locked memory.
    pub host_bytes: u64,
    /// Streams.
    pub streams: u64,
    /// Events.
    pub events: u64,
    /// Graphs.
    pub graphs: u64,
    /// Graphs ready to be launched.
    pub executables: u64,
    /// Contexts on this thread's stack.
    pub current: u64,
}

/// Bank conflicts of one source line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BankConflicts {
    /// `file:line`.
    pub place: String,
    /// Phases without conflicts.
    pub phases: u64,
    /// Phases that conflicts added.
    pub extra: u64,
}

/// The opened library.
#[derive(Debug)]
pub struct Emulator {
    handle: usize,
    mode: Mode,
    driver: Driver,
}

static OPENED: OnceLock<Result<Emulator, String>> = OnceLock::new();

/// Opens the emulator, once a process and before anything opens libcuda; else the reason why
/// tests of kernels cannot run, or that they are to use the real driver. The driver is the one that
/// [`DRIVER`] asks for.
///
/// `INFLIGHT_SIMT_LIBRARY` names a library to open in the place of the one that was built.
///
/// # Errors
/// Where it was not built, where another mode was opened before ([`opened`] tells which), and where
/// `INFLIGHT_TEST_DRIVER=real` asks for the real driver.
///
/// # Panics
/// Where the library cannot be opened: that is no reason to leave tests out.
pub fn device(mode: Mode) -> Result<&'static Emulator, String> {
    device_of(mode, Driver::asked())
}

/// The same with this driver, whatever the environment asks for.
///
/// # Errors
/// As [`device`], and where another driver was opened before.
///
/// # Panics
/// As [`device`].
pub fn device_of(mode: Mode, driver: Driver) -> Result<&'static Emulator, String> {
    if wants_real_driver() {
        return Err("INFLIGHT_TEST_DRIVER=real: the real driver is used".into());
    }
    let opened = OPENED.get_or_init(|| Emulator::open(mode, driver));
    let emulator = opened.as_ref().map_err(String::clone)?;
    if (emulator.mode, emulator.driver) != (mode, driver) {
        let Emulator { mode, driver, .. } = emulator;
        return Err(format!("this process has opened the emulator as {mode:?}, {driver:?}"));
    }
    Ok(emulator)
}

/// The emulator that this process has opened.
#[must_use]
pub fn opened() -> Option<&'static Emulator> {
    OPENED.get().and_then(|opened| opened.as_ref().ok())
}

/// Whether `INFLIGHT_TEST_DRIVER=real` asks for the real driver instead of the emulator.
#[must_use]
pub fn wants_real_driver() -> bool {
    std::env::var_os("INFLIGHT_TEST_DRIVER").is_some_and(|v| v == "real")
}

/// The library's file: a program that is started with it in `LD_PRELOAD` has the emulator for its
/// driver, of 13.0.
///
/// # Errors
/// Where it was not built, the reason.
pub fn library(mode: Mode) -> Result<&'static str, &'static str> {
    library_of(mode, Driver::Cuda13_0)
}

/// The same of this driver. What checks is there for 13.0 alone: it is the same code.
///
/// # Errors
/// As [`library`].
pub fn library_of(mode: Mode, driver: Driver) -> Result<&'static str, &'static str> {
    let path = match (mode, driver) {
        (Mode::Fast, Driver::Cuda13_0) => option_env!("SIMT_FAST"),
        (Mode::Fast, Driver::Cuda12_8) => option_env!("SIMT_FAST_12080"),
        (Mode::Fast, Driver::Cuda12_4) => option_env!("SIMT_FAST_12040"),
        (Mode::Fast, Driver::Cuda12_3) => option_env!("SIMT_FAST_12030"),
        (Mode::Checking, Driver::Cuda13_0) => option_env!("SIMT_CHECKING"),
        (Mode::Ptx, Driver::Cuda13_0) => option_env!("SIMT_PTX"),
        (Mode::Checking | Mode::Ptx, _) => {
            return Err("the libraries that check are drivers of CUDA 13.0 only");
        }
    };
    path.ok_or_else(|| option_env!("SIMT_NOT_BUILT").unwrap_or("not built"))
}

impl Emulator {
    fn open(mode: Mode, driver: Driver) -> Result<Self, String> {
        let given = std::env::var("INFLIGHT_SIMT_LIBRARY").ok();
        let path = match &given {
            Some(path) => path.as_str(),
            None => library_of(mode, driver)?,
        };
        let name = CString::new(path).map_err(|e| e.to_string())?;
        // SAFETY: the name is a C string; the library's initialisers only register kernels.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: dlerror returns a C string or null.
            let text = unsafe { libc::dlerror() };
            let text = match text.is_null() {
                true => "dlopen does not say why".into(),
                // SAFETY: not null, and valid until this thread's next dl call.
                false => unsafe { CStr::from_ptr(text) }.to_string_lossy(),
            };
            panic!("{path} cannot be opened: {text}");
        }
        Ok(Self { handle: handle as usize, mode, driver })
    }

    /// Address of a symbol of the library: a function of the driver's interface.
    #[must_use]
    pub fn symbol(&self, name: &str) -> Option<*mut c_void> {
        let name = CString::new(name).ok()?;
        // SAFETY: the handle is never closed, the name is a C string.
        let at = unsafe { libc::dlsym(self.handle as *mut c_void, name.as_ptr()) };
        (!at.is_null()).then_some(at)
    }

    fn control(&self, name: &str) -> *mut c_void {
        self.symbol(name).unwrap_or_else(|| panic!("the emulator lacks {name}"))
    }

    /// What was opened.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The driver that was opened.
    #[must_use]
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// Shuffles the order of threads, blocks and copies; 0 is in order.
    pub fn set_seed(&self, seed: u64) {
        // SAFETY: the signature is that of control.h.
        let f: extern "C" fn(u64) = unsafe { std::mem::transmute(self.control("simt_set_seed")) };
        f(seed);
    }

    /// Whether on devices before 9.0, which have no dependent launches, every launch is one, of code
    /// that waits for the kernel before: it begins before that one is done, and is held to the
    /// contract of such launches. From 9.0 on launches and code are what they are.
    pub fn set_dependent(&self, on: bool) {
        // SAFETY: the signature is that of control.h.
        let f: extern "C" fn(c_int) =
            unsafe { std::mem::transmute(self.control("simt_set_dependent")) };
        f(c_int::from(on));
    }

    /// What was found since the last call, and forgets it.
    #[must_use]
    pub fn reports(&self) -> Vec<String> {
        let all = self.text("simt_take_reports");
        all.split('\u{1}').filter(|s| !s.is_empty()).map(str::to_owned).collect()
    }

    /// Bank conflicts by source line since the last [`Emulator::reset`]. Only the checking
    /// library sees those of ordinary accesses.
    #[must_use]
    pub fn bank_conflicts(&self) -> Vec<BankConflicts> {
        let parse = |line: &str| {
            let mut words = line.rsplitn(3, ' ');
            let extra = words.next()?.parse().ok()?;
            let phases = words.next()?.parse().ok()?;
            Some(BankConflicts { place: words.next()?.to_owned(), phases, extra })
        };
        self.text("simt_bank_conflicts").lines().filter_map(parse).collect()
    }

    /// Counts since the start or the last [`Emulator::reset`].
    #[must_use]
    pub fn stats(&self) -> Stats {
        // SAFETY: the signature is that of control.h, the struct that of simt_counters.
        let f: extern "C" fn(&mut Stats) =
            unsafe { std::mem::transmute(self.control("simt_stats")) };
        let mut stats = Stats::default();
        f(&mut stats);
        stats
    }

    /// Presents another device: compute capability (86 is 8.6) and multiprocessors, 0 for the usual
    /// ones. For contexts made from then on.
    pub fn set_device(&self, capability: u32, multiprocessors: u32) {
        // SAFETY: the signature is that of control.h.
        let f: extern "C" fn(c_int, c_int) =
            unsafe { std::mem::transmute(self.control("simt_set_device")) };
        f(capability as c_int, multiprocessors as c_int);
    }

    /// Makes images what a build for these architectures has, named as `INFLIGHT_CUDA_ARCHS` names
    /// them (`80;90`); an empty text is the usual build.
    pub fn set_archs(&self, archs: &str) {
        // SAFETY: the signature is that of control.h.
        let f: extern "C" fn(*const c_char) =
            unsafe { std::mem::transmute(self.control("simt_set_archs")) };
        let archs = CString::new(archs).expect("no zero in a list");
        f(archs.as_ptr());
    }

    /// Makes the driver say that it offers this version (13000 is 13.0), 0 for the usual one.
    pub fn set_driver_version(&self, version: i32) {
        // SAFETY: the signature is that of control.h.
        let f: extern "C" fn(c_int) =
            unsafe { std::mem::transmute(self.control("simt_set_driver_version")) };
        f(version);
    }

    /// Which toolkit the images stand for that are loaded from then on (13000 is 13.0); 0 for the
    /// one that `INFLIGHT_SIMT_TOOLKIT` names, or one that every driver takes. The driver refuses
    /// images as a real one does: code of a newer major version, PTX of any newer one.
    pub fn set_toolkit(&self, version: i32) {
        // SAFETY: the signature is that of control.h.
        let f: extern "C" fn(c_int) =
            unsafe { std::mem::transmute(self.control("simt_set_toolkit")) };
        f(version);
    }

    /// Makes the `nth` call from now on of a function of the driver fail with `code`, once; `None`
    /// is any function but those that give back, or make a context current to do so. Sticky: the context is lost with it. With an
    /// `nth` of 0, no call fails.
    pub fn fail_call(&self, function: Option<&str>, nth: u64, code: i32, sticky: bool) {
        // SAFETY: the signature is that of control.h.
        let f: extern "C" fn(*const c_char, u64, c_int, c_int) =
            unsafe { std::mem::transmute(self.control("simt_fail_call")) };
        let name = function.map(|name| CString::new(name).expect("no zero in a name"));
        let name = name.as_ref().map_or(std::ptr::null(), |name| name.as_ptr());
        f(name, nth, code, c_int::from(sticky));
    }

    /// Whether the failure asked for is still to come.
    #[must_use]
    pub fn is_failure_pending(&self) -> bool {
        // SAFETY: the signature is that of control.h.
        let f: extern "C" fn() -> c_int =
            unsafe { std::mem::transmute(self.control("simt_fail_pending")) };
        f() != 0
    }

    /// While it is on, streams and memory say that they are of another context.
    pub fn set_foreign(&self, on: bool) {
        // SAFETY: the signature is that of control.h.
        let f: extern "C" fn(c_int) =
            unsafe { std::mem::transmute(self.control("simt_set_foreign")) };
        f(c_int::from(on));
    }

    /// What has been made and not been given back.
    #[must_use]
    pub fn alive(&self) -> Alive {
        // SAFETY: the signature is that of control.h, the struct that of simt_alive.
        let f: extern "C" fn(&mut Alive) =
            unsafe { std::mem::transmute(self.control("simt_count_alive")) };
        let mut alive = Alive::default();
        f(&mut alive);
        alive
    }

    /// As at the start: no memory, nothing enqueued, no lost context, no reports, seed 0, the usual
    /// device. Streams and loaded libraries stay valid.
    pub fn reset(&self) {
        // SAFETY: the signature is that of control.h.
        let f: extern "C" fn() = unsafe { std::mem::transmute(self.control("simt_reset")) };
        f();
    }

    /// Whether the library checks, as it says itself.
    #[must_use]
    pub fn is_checking(&self) -> bool {
        // SAFETY: the signature is that of control.h.
        let f: extern "C" fn() -> c_int =
            unsafe { std::mem::transmute(self.control("simt_is_checking")) };
        f() != 0
    }

    /// Instructions of warps that were executed from PTX.
    #[must_use]
    pub fn ptx_instructions(&self) -> u64 {
        // SAFETY: the signature is that of control.h.
        let f: extern "C" fn() -> u64 =
            unsafe { std::mem::transmute(self.control("simt_ptx_instructions")) };
        f()
    }

    /// Whether kernels are executed from PTX, as the library says itself.
    #[must_use]
    pub fn is_ptx(&self) -> bool {
        // SAFETY: the signature is that of control.h.
        let f: extern "C" fn() -> c_int =
            unsafe { std::mem::transmute(self.control("simt_is_ptx")) };
        f() != 0
    }

    fn text(&self, function: &str) -> String {
        // SAFETY: the signature is that of control.h.
        let f: extern "C" fn(*mut c_char, usize) -> usize =
            unsafe { std::mem::transmute(self.control(function)) };
        let mut bytes = vec![0u8; f(std::ptr::null_mut(), 0)];
        loop {
            let needed = f(bytes.as_mut_ptr().cast(), bytes.len());
            if needed <= bytes.len() {
                bytes.truncate(needed.saturating_sub(1));
                return String::from_utf8_lossy(&bytes).into_owned();
            }
            bytes.resize(needed, 0);
        }
    }
}
