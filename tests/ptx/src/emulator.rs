//! The two sides of `tests/simt/src/exec.h`: what the emulator calls, and the emulator as a [`Host`].
//!
//! The emulator runs one kernel at a time, under a lock of its own.

use std::ffi::{CStr, CString, c_char};
use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::block::{Block, Launch, Outcome};
use crate::boxes::Map;
use crate::host::{Access, Addresses, Atomic, CopyBytes, Ended, Going, Host, Kind};
use crate::library::Library;
use crate::program::Program;

/// `ptx_launch`.
#[repr(C)]
#[allow(missing_docs, reason = "exec.h says what they are")]
#[derive(Debug)]
pub struct PtxLaunch {
    pub params: *const u8,
    pub param_bytes: u32,
    pub grid: [u32; 3],
    pub threads: [u32; 3],
    pub smem_bytes: u32,
    pub dependent: u32,
    pub reserved: u32,
    pub seed: u64,
}

#[repr(C)]
#[derive(Default)]
struct ExecMap {
    base: u64,
    rank: u32,
    elt: u32,
    swizzle: u32,
    pad: u32,
    dim: [u32; 5],
    boxes: [u32; 5],
    stride: [u64; 5],
}

unsafe extern "C" {
    safe fn exec_access(
        warp: u32,
        mask: u32,
        at: &Addresses,
        bytes: u32,
        kind: u32,
        pc: u32,
    ) -> u32;
    safe fn exec_check(id: u32, at: u64, bytes: u32, kind: u32, pc: u32) -> u32;
    safe fn exec_atomic(thread: u32, at: u64, kind: u32, order: u32, scope: u32, pc: u32) -> u32;
    safe fn exec_copy_issued(warp: u32, mask: u32, to: &Addresses, bytes: u32, pc: u32) -> u32;
    safe fn exec_copy_landed(
        warp: u32,
        mask: u32,
        to: &Addresses,
        from: &Addresses,
        bytes: u32,
        read: &[u32; 32],
        seen_in: u32,
        pc: u32,
    ) -> u32;
    safe fn exec_pending(id: u32, at: u32, bytes: u32, on: u32, pc: u32);
    safe fn exec_mbarrier(at: u32, live: u32);
    safe fn exec_mbarrier_used(id: u32, at: u32, fenced: u32, pc: u32);
    safe fn exec_release(clock: u32, warp: u32, mask: u32);
    safe fn exec_acquire(clock: u32, warp: u32, mask: u32);
    safe fn exec_release_id(clock: u32, id: u32);
    safe fn exec_move(from: u32, to: u32);
    safe fn exec_clear(clock: u32);
    safe fn exec_sync_warp(warp: u32, mask: u32);
    safe fn exec_new_agent(thread: u32) -> u32;
    safe fn exec_fence_proxy(warp: u32, mask: u32);
    safe fn exec_prior_done() -> u32;
    safe fn exec_has_waited(warp: u32, mask: u32);
    safe fn exec_let_next();
    fn exec_report(kind: u32, thread: u32, pc: u32, text: *const c_char);
    safe fn exec_tensor_map(at: u64, out: &mut ExecMap) -> u32;
}

fn going(goes_on: u32) -> Going {
    if goes_on == 0 { Err(Ended) } else { Ok(()) }
}

fn kind(access: Access) -> u32 {
    u32::from(access.shared) | u32::from(access.write) << 1 | u32::from(access.constant) << 2
}

#[derive(Debug)]
struct Emulator;

impl Host for Emulator {
    fn access(&mut self, warp: u32, mask: u32, at: &Addresses, access: Access, pc: u32) -> Going {
        going(exec_access(warp, mask, at, access.bytes, kind(access), pc))
    }
    fn check(&mut self, id: u32, at: u64, access: Access, pc: u32) -> Going {
        going(exec_check(id, at, access.bytes, kind(access), pc))
    }
    fn atomic(&mut self, thread: u32, at: u64, shared: bool, atomic: Atomic, pc: u32) -> Going {
        let order = u32::from(atomic.acquire) | u32::from(atomic.release) << 1;
        going(exec_atomic(thread, at, u32::from(shared) | 2, order, u32::from(atomic.device), pc))
    }
    fn copy_issued(&mut self, warp: u32, mask: u32, to: &Addresses, bytes: u32, pc: u32) -> Going {
        going(exec_copy_issued(warp, mask, to, bytes, pc))
    }
    fn copy_landed(
        &mut self,
        warp: u32,
        mask: u32,
        to: &Addresses,
        from: &Addresses,
        copied: CopyBytes<'_>,
        pc: u32,
    ) -> Going {
        let seen_in = copied.seen_in.unwrap_or(u32::MAX);
        going(exec_copy_landed(warp, mask, to, from, copied.written, copied.read, seen_in, pc))
    }
    fn pending(&mut self, id: u32, at: u32, bytes: u32, on: bool, pc: u32) {
        exec_pending(id, at, bytes, u32::from(on), pc);
    }
    fn mbarrier(&mut self, at: u32, live: bool) {
        exec_mbarrier(at, u32::from(live));
    }
    fn mbarrier_used(&mut self, id: u32, at: u32, fenced: bool, pc: u32) {
        exec_mbarrier_used(id, at, u32::from(fenced), pc);
    }
    fn release(&mut self, clock: u32, warp: u32, mask: u32) {
        exec_release(clock, warp, mask);
    }
    fn acquire(&mut self, clock: u32, warp: u32, mask: u32) {
        exec_acquire(clock, warp, mask);
    }
    fn release_id(&mut self, clock: u32, id: u32) {
        exec_release_id(clock, id);
    }
    fn move_clock(&mut self, from: u32, to: u32) {
        exec_move(from, to);
    }
    fn clear_clock(&mut self, clock: u32) {
        exec_clear(clock);
    }
    fn sync_warp(&mut self, warp: u32, mask: u32) {
        exec_sync_warp(warp, mask);
    }
    fn new_agent(&mut self, thread: u32) -> u32 {
        exec_new_agent(thread)
    }
    fn fence_proxy(&mut self, warp: u32, mask: u32) {
        exec_fence_proxy(warp, mask);
    }
    fn prior_done(&mut self) -> bool {
        exec_prior_done() != 0
    }
    fn has_waited(&mut self, warp: u32, mask: u32) {
        exec_has_waited(warp, mask);
    }
    fn let_next(&mut self) {
        exec_let_next();
    }
    fn report(&mut self, kind: Kind, thread: u32, pc: u32, text: fmt::Arguments<'_>) {
        let text = CString::new(text.to_string()).unwrap_or_default();
        // SAFETY: the text ends with a zero and is read before the call returns.
        unsafe { exec_report(kind as u32, thread, pc, text.as_ptr()) };
    }
    fn tensor_map(&mut self, at: u64) -> Option<Map> {
        let mut found = ExecMap::default();
        if exec_tensor_map(at, &mut found) == 0 {
            return None;
        }
        let ExecMap { base, rank, elt, swizzle, dim, boxes, stride, .. } = found;
        Some(Map { base, rank, element_bytes: elt, swizzle, dim, stride, box_: boxes })
    }
}

// ---- what the emulator calls, under its lock

static INSTRUCTIONS: AtomicU64 = AtomicU64::new(0);
static NANOSECONDS: AtomicU64 = AtomicU64::new(0);

struct Shared(Library);
// SAFETY: the emulator's lock is held by the thread that calls one of the functions below, `ptx_at_exit` too, so
// that one thread at a time touches what is in it, and the lock orders them.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

fn library() -> &'static Library {
    static LIBRARY: std::sync::OnceLock<Shared> = std::sync::OnceLock::new();
    &LIBRARY
        .get_or_init(|| {
            let folder = std::env::var_os("INFLIGHT_SIMT_PTX").filter(|folder| !folder.is_empty());
            let usual = || PathBuf::from(option_env!("PTX_FOLDER").unwrap_or("target/ptx"));
            Shared(Library::new(folder.map_or_else(usual, PathBuf::from)))
        })
        .0
}

/// `ptx_at_exit`: in the folders that the environment names, for each process a file of its own.
#[unsafe(no_mangle)]
pub extern "C" fn ptx_at_exit() {
    let write = |variable: &str, ending: &str, text: &dyn Fn() -> String| {
        let folder = std::env::var_os(variable).filter(|folder| !folder.is_empty());
        let Some(folder) = folder else { return };
        let file = PathBuf::from(folder).join(format!("{}.{ending}", std::process::id()));
        if let Err(why) = std::fs::write(&file, text()) {
            eprintln!("ptx: {}: {why}", file.display());
        }
    };
    write("INFLIGHT_PTX_COVERAGE", "tsv", &|| library().coverage());
    // Instructions of warps, and the seconds that they took.
    write("INFLIGHT_PTX_SPEED", "speed", &|| {
        let nanoseconds = NANOSECONDS.load(Ordering::Relaxed);
        format!("{} {:.3}\n", ptx_instructions(), nanoseconds as f64 / 1e9)
    });
}

/// A block, and the launch's number of instructions it has added to.
#[derive(Debug)]
pub struct PtxBlock(Box<Block<Emulator>>);

impl fmt::Debug for Block<Emulator> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.program.name)
    }
}

/// Copies a text with its final zero, as much as there is room; returns what all of it takes.
///
/// # Safety
/// `to` is null, or so many bytes can be written there.
unsafe fn hand_over(text: &str, to: *mut c_char, room: usize) -> usize {
    if !to.is_null() && room > 0 {
        let taken = text.len().min(room - 1);
        // SAFETY: as the caller says; the last byte is one of them.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), to.cast(), taken);
            to.add(taken).write(0);
        }
    }
    text.len() + 1
}

/// `ptx_find`.
///
/// # Safety
/// `name` ends with a zero; `why` has room for so many bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptx_find(
    name: *const c_char,
    target: u32,
    why: *mut c_char,
    room: usize,
) -> *const Program {
    // SAFETY: as the caller says.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    // What a broken file should not do, and does, is not to end the process without the file's name.
    let found =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| library().find(&name, target)));
    let panicked = |_| Err(format!("the executor panicked when it read {}", library().reading()));
    match found.unwrap_or_else(panicked) {
        // The library keeps it.
        Ok(program) => Rc::as_ptr(&program),
        Err(text) => {
            // SAFETY: as the caller says.
            unsafe { hand_over(&text, why, room) };
            std::ptr::null()
        }
    }
}

/// `ptx_kernel_param_bytes`.
#[unsafe(no_mangle)]
pub extern "C" fn ptx_kernel_param_bytes(kernel: &Program) -> u32 {
    kernel.param_bytes
}

/// `ptx_kernel_threads`.
#[unsafe(no_mangle)]
pub extern "C" fn ptx_kernel_threads(kernel: &Program) -> u32 {
    kernel.max_threads
}

/// `ptx_block_begin`.
///
/// # Safety
/// The kernel is one that `ptx_find` has found; parameters and shared memory are there until the block's
/// end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptx_block_begin(
    kernel: *const Program,
    launch: &PtxLaunch,
    at: &[u32; 3],
    shared: *mut u8,
) -> *mut PtxBlock {
    // SAFETY: it came from an `Rc` that the library keeps; so there is one more of them.
    let program = unsafe {
        Rc::increment_strong_count(kernel);
        Rc::from_raw(kernel)
    };
    let launch = Launch {
        params: launch.params,
        param_bytes: launch.param_bytes,
        grid: launch.grid,
        threads: launch.threads,
        shared_bytes: launch.smem_bytes,
        dependent: launch.dependent != 0,
        seed: launch.seed,
    };
    let block = Block::new(program, Emulator, launch, *at, shared);
    Box::into_raw(Box::new(PtxBlock(Box::new(block))))
}

/// `ptx_block_run`.
#[unsafe(no_mangle)]
pub extern "C" fn ptx_block_run(block: &mut PtxBlock) -> u32 {
    let (before, start) = (block.0.instructions, Instant::now());
    let outcome = block.0.run();
    NANOSECONDS.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    INSTRUCTIONS.fetch_add(block.0.instructions - before, Ordering::Relaxed);
    match outcome {
        Outcome::Ended => 0,
        Outcome::WaitsForPrior => 1,
        Outcome::Fault => 2,
    }
}

/// `ptx_block_end`.
///
/// # Safety
/// The block came from `ptx_block_begin`, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptx_block_end(block: *mut PtxBlock) {
    // SAFETY: as the caller says.
    drop(unsafe { Box::from_raw(block) });
}

/// `ptx_place`.
///
/// # Safety
/// `to` is null, or has room for so many bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptx_place(pc: u32, to: *mut c_char, room: usize) -> usize {
    // SAFETY: as the caller says.
    unsafe { hand_over(&library().place(pc), to, room) }
}

/// `ptx_instructions`.
#[unsafe(no_mangle)]
pub extern "C" fn ptx_instructions() -> u64 {
    INSTRUCTIONS.load(Ordering::Relaxed)
}
