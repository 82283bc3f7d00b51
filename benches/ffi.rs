//! What the FFI boundary costs: a step of 256 running requests, schedule, batch and commit, called from
//! Rust and from C, in turns. `cargo bench --bench ffi`.
//!
//! The program in C (`tests/capi/steps.c`) is compiled against the library that was built with this
//! bench, and loaded into it, so both sides run on the same core at the same time.

mod common;

use std::ffi::{CStr, CString, c_void};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use inflight::batch::{BatchBuilder, RowBuckets};
use inflight::cache::CacheConfig;
use inflight::{Config, Policy, Request, RequestId, Sampled, Scheduler, Time};

const RUNNING: usize = 256;
const BLOCKS: usize = 40_000;
const ROUNDS: usize = 41;
const STEPS: u32 = 50;

/// The same as `struct engine`.
struct Engine {
    scheduler: Scheduler,
    builder: BatchBuilder,
    now: u64,
    tokens: Vec<u32>,
}

impl Engine {
    fn open() -> Self {
        let cache = CacheConfig {
            num_blocks: BLOCKS,
            block_size: 16,
            prefix_cache: true,
            num_host_blocks: 0,
        };
        let config = Config { max_num_seqs: RUNNING, ..Config::new(cache) };
        let mut scheduler = Scheduler::new(config, Policy::continuous()).expect("sound");
        for id in 0..RUNNING as u32 {
            let prompt = (0..1 + id % 48).map(|i| id * 1000 + i).collect();
            let request = Request::new(RequestId(id.into()), prompt, 100_000);
            scheduler.submit(request).expect("it fits");
        }
        let builder = BatchBuilder::new(RowBuckets::none(), None);
        Self { scheduler, builder, now: 0, tokens: (0..RUNNING as u32).collect() }
    }

    /// Nanoseconds a step.
    fn run(&mut self, steps: u32) -> f64 {
        let start = Instant::now();
        for _ in 0..steps {
            let id = self.scheduler.schedule(Time(self.now)).expect("all run").id();
            self.now += 1;
            let step = self.scheduler.step(id).expect("it is in flight");
            let batch = self.builder.build(&self.scheduler, step).expect("the newest step");
            assert_eq!(black_box(batch).logits_indices().len(), RUNNING);
            let outputs = self.scheduler.commit(id, Sampled::One(&self.tokens)).expect("its own");
            assert_eq!(black_box(outputs).num_tokens(), RUNNING);
        }
        start.elapsed().as_nanos() as f64 / f64::from(steps)
    }
}

/// The engine in C.
struct Loaded {
    engine: *mut c_void,
    run: unsafe extern "C" fn(*mut c_void, u32) -> f64,
    close: unsafe extern "C" fn(*mut c_void),
}

impl Loaded {
    fn open() -> Self {
        let object = CString::new(compile().into_os_string().into_encoded_bytes()).expect("a path");
        // SAFETY: a path with a terminator; the object runs no code of its own when it is loaded.
        let handle = unsafe { libc::dlopen(object.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "{object:?} cannot be loaded");
        let symbol = |name: &CStr| {
            // SAFETY: the handle is open, and the name has a terminator.
            let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
            assert!(!found.is_null(), "{name:?} is not in {object:?}");
            found
        };
        // SAFETY: this is its type in steps.c.
        let open: unsafe extern "C" fn() -> *mut c_void =
            unsafe { std::mem::transmute(symbol(c"engine_open")) };
        // SAFETY: as above.
        let run = unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void, u32) -> f64>(
                symbol(c"engine_run"),
            )
        };
        // SAFETY: as above.
        let close = unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(symbol(
                c"engine_close",
            ))
        };
        // SAFETY: it takes nothing.
        Self { engine: unsafe { open() }, run, close }
    }

    fn run(&mut self, steps: u32) -> f64 {
        // SAFETY: the engine is open.
        unsafe { (self.run)(self.engine, steps) }
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: it is open, and not used any more.
        unsafe { (self.close)(self.engine) }
    }
}

fn compile() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let object = Path::new(env!("CARGO_TARGET_TMPDIR")).join("steps.so");
    let exe = std::env::current_exe().expect("a bench has a path");
    let library = exe.parent().expect("it lies in a directory");
    let words = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let mut words = words.split_whitespace();
    let status = Command::new(words.next().unwrap_or("cc"))
        .args(words)
        .args(["-std=c11", "-O2", "-D_GNU_SOURCE", "-shared", "-fPIC", "-I"])
        .arg(root.join("include"))
        .arg(root.join("tests/capi/steps.c"))
        .arg("-L")
        .arg(library)
        .arg("-linflight")
        .arg(format!("-Wl,-rpath,{}", library.display()))
        .arg("-o")
        .arg(&object)
        .status()
        .expect("there is a C compiler");
    assert!(status.success(), "steps.c does not compile");
    object
}

fn main() {
    let (mut rust, mut c) = (Engine::open(), Loaded::open());
    rust.run(2 * STEPS);
    c.run(2 * STEPS);
    let (mut of_rust, mut of_c, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // Who comes first finds other things in the caches.
        let (r, f) = if round % 2 == 0 {
            let r = rust.run(STEPS);
            (r, c.run(STEPS))
        } else {
            let f = c.run(STEPS);
            (rust.run(STEPS), f)
        };
        of_rust.push(r / 1e3);
        of_c.push(f / 1e3);
        ratios.push(f / r);
    }
    common::summary("ffi/256 from Rust", &of_rust, None);
    common::summary("ffi/256 from C", &of_c, None);
    let ratio = common::spread(&ratios);
    println!(
        "ffi/256 C / Rust: {:.3} (target 1.1), 10..90 % {:.3}..{:.3}",
        ratio.median, ratio.p10, ratio.p90
    );
}
