//! A machine for tests: plain memory, and what was reported.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use crate::block::{Block, Launch, Outcome};
use crate::boxes::Map;
use crate::host::{Access, Addresses, Atomic, CopyBytes, Ended, Going, Host, Kind};
use crate::parse::parse;
use crate::program::{Program, SHARED_BASE};
use crate::warp::lanes;

/// What a block has left, and what was said of it.
pub(super) struct Ran {
    pub(super) outcome: Outcome,
    pub(super) out: Vec<u32>,
    pub(super) reports: Vec<String>,
    pub(super) events: Vec<String>,
}

#[derive(Clone, Default)]
struct Notes {
    reports: Rc<RefCell<Vec<String>>>,
    events: Rc<RefCell<Vec<String>>>,
    prior_done: Rc<Cell<bool>>,
}

struct Machine {
    notes: Notes,
    shared_bytes: u32,
    agents: u32,
    map: Option<Map>,
}

impl Machine {
    fn note(&self, text: impl Into<String>) {
        self.notes.events.borrow_mut().push(text.into());
    }

    fn inside(&self, at: u64, access: Access) -> Going {
        let end = u64::from(SHARED_BASE + self.shared_bytes);
        if access.shared && (at < u64::from(SHARED_BASE) || at + u64::from(access.bytes) > end) {
            self.notes.reports.borrow_mut().push(format!("shared address {at:#x} is outside"));
            return Err(Ended);
        }
        Ok(())
    }
}

impl Host for Machine {
    fn access(&mut self, _: u32, mask: u32, at: &Addresses, access: Access, _: u32) -> Going {
        lanes(mask).try_for_each(|lane| self.inside(at[lane as usize], access))
    }
    fn check(&mut self, _: u32, at: u64, access: Access, _: u32) -> Going {
        self.inside(at, access)
    }
    fn atomic(&mut self, _: u32, _: u64, _: bool, atomic: Atomic, _: u32) -> Going {
        self.note(format!("atomic {atomic:?}"));
        Ok(())
    }
    fn copy_issued(&mut self, _: u32, mask: u32, to: &Addresses, bytes: u32, _: u32) -> Going {
        let access = Access { shared: true, write: true, constant: false, bytes };
        lanes(mask).try_for_each(|lane| self.inside(to[lane as usize], access))
    }
    fn copy_landed(
        &mut self,
        warp: u32,
        mask: u32,
        _: &Addresses,
        _: &Addresses,
        copied: CopyBytes<'_>,
        _: u32,
    ) -> Going {
        self.note(format!("landed {warp} {mask:#x}, seen in {:?}", copied.seen_in));
        Ok(())
    }
    fn pending(&mut self, _: u32, _: u32, _: u32, _: bool, _: u32) {}
    fn mbarrier(&mut self, _: u32, _: bool) {}
    fn mbarrier_used(&mut self, id: u32, _: u32, fenced: bool, _: u32) {
        self.note(format!("mbarrier used by {id}, fenced: {fenced}"));
    }
    fn release(&mut self, clock: u32, warp: u32, mask: u32) {
        self.note(format!("release {clock} {warp} {mask:#x}"));
    }
    fn acquire(&mut self, clock: u32, warp: u32, mask: u32) {
        self.note(format!("acquire {clock} {warp} {mask:#x}"));
    }
    fn release_id(&mut self, clock: u32, id: u32) {
        self.note(format!("release {clock} of {id}"));
    }
    fn move_clock(&mut self, from: u32, to: u32) {
        self.note(format!("move {from} {to}"));
    }
    fn clear_clock(&mut self, _: u32) {}
    fn sync_warp(&mut self, warp: u32, mask: u32) {
        self.note(format!("sync {warp} {mask:#x}"));
    }
    fn new_agent(&mut self, _: u32) -> u32 {
        self.agents += 1;
        1000 + self.agents
    }
    fn fence_proxy(&mut self, _: u32, _: u32) {
        self.note("fence.proxy");
    }
    fn prior_done(&mut self) -> bool {
        self.notes.prior_done.get()
    }
    fn has_waited(&mut self, warp: u32, mask: u32) {
        self.note(format!("waited {warp} {mask:#x}"));
    }
    fn let_next(&mut self) {
        self.note("let next");
    }
    fn report(&mut self, kind: Kind, thread: u32, pc: u32, text: fmt::Arguments<'_>) {
        self.notes.reports.borrow_mut().push(format!("{kind:?} thread {thread} at {pc}: {text}"));
    }
    fn tensor_map(&mut self, _: u64) -> Option<Map> {
        self.map
    }
}

/// How a kernel is run.
pub(super) struct Setup {
    pub(super) threads: u32,
    pub(super) seed: u64,
    pub(super) prior_done: bool,
    pub(super) map: Option<Map>,
    /// What the output's words are at first.
    pub(super) fill: u32,
}

impl Default for Setup {
    fn default() -> Self {
        Self { threads: 32, seed: 0, prior_done: true, map: None, fill: 0 }
    }
}

/// PTX of a kernel with this body, whose parameters are the addresses of what it reads and writes, in
/// `%rd1` and `%rd2`, with the thread's number in `%r1`.
pub(super) fn kernel(body: &str) -> String {
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n\
         .extern .shared .align 1024 .b8 smem[];\n\
         .visible .entry k(\n.param .align 8 .b8 k_param_0[16]\n)\n.maxntid 128, 1, 1\n{{\n\
         .reg .pred %p<20>;\n.reg .b16 %rs<20>;\n.reg .b32 %r<200>;\n.reg .f32 %f<200>;\n.reg .b64 %rd<40>;\n\
         ld.param.u64 %rd1, [k_param_0];\nld.param.u64 %rd2, [k_param_0+8];\nmov.u32 %r1, %tid.x;\n\
         {body}\nret;\n}}\n"
    )
}

/// The end of most bodies: a register of every thread to the output.
pub(super) fn out(register: &str) -> String {
    format!(
        "mul.wide.u32 %rd30, %r1, 4;\nadd.s64 %rd30, %rd2, %rd30;\nst.global.u32 [%rd30], {register};\n"
    )
}

pub(super) fn program(text: &str) -> Result<Program, String> {
    Program::new(&parse(text, "k", "k.ptx")?, "k.ptx")
}

/// Runs a block of it.
pub(super) fn run(body: &str, input: &[u32], setup: &Setup) -> Ran {
    let text = kernel(body);
    let program = Rc::new(program(&text).unwrap_or_else(|why| panic!("{why}\n{text}")));
    // Aligned as device memory is, as far as bulk copies ask for it.
    let mut room = vec![0u32; 4096 + 4];
    let first = room.as_ptr().align_offset(16);
    let out = &mut room[first..first + 4096];
    out.fill(setup.fill);
    let params = [input.as_ptr() as u64, out.as_mut_ptr() as u64];
    let mut shared = vec![u64::MAX; 8192 + 128];
    // Aligned as the address in the block's own space is.
    let shared = shared.as_mut_ptr().cast::<u8>();
    let shared = shared.wrapping_add(shared.align_offset(1024));
    let notes = Notes::default();
    notes.prior_done.set(setup.prior_done);
    let shared_bytes = 65536;
    let machine = Machine { notes: notes.clone(), shared_bytes, agents: 0, map: setup.map };
    let launch = Launch {
        params: params.as_ptr().cast(),
        param_bytes: 16,
        grid: [1; 3],
        threads: [setup.threads, 1, 1],
        shared_bytes,
        dependent: !setup.prior_done,
        seed: setup.seed,
    };
    let mut block = Block::new(program, machine, launch, [0; 3], shared);
    let mut outcome = block.run();
    if outcome == Outcome::WaitsForPrior {
        notes.prior_done.set(true);
        notes.events.borrow_mut().push("the kernel before is done".into());
        outcome = block.run();
    }
    drop(block);
    let (reports, events) = (notes.reports.take(), notes.events.take());
    Ran { outcome, out: room[first..first + 4096].to_vec(), reports, events }
}

/// The output of a kernel that has nothing said of it.
pub(super) fn result(body: &str, input: &[u32]) -> Vec<u32> {
    let ran = run(body, input, &Setup::default());
    assert_eq!((ran.outcome, &ran.reports[..]), (Outcome::Ended, &[][..]));
    ran.out
}

/// What is said of a kernel that is at fault.
pub(super) fn fault(body: &str, setup: &Setup) -> String {
    let ran = run(body, &[0; 64], setup);
    assert_eq!(ran.outcome, Outcome::Fault, "{:?}", ran.reports);
    ran.reports.join("\n")
}
