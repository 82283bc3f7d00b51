//! A block under way: its warps take turns, each until it waits.

use std::collections::HashMap;
use std::rc::Rc;

use crate::bulk::Job;
use crate::host::{Ended, Going, Host, Kind};
use crate::operations::Op;
use crate::program::{Program, Special};
use crate::warp::{Group, Registers, Wait, Warp};

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ended,
    /// All that are left wait for the kernel before.
    WaitsForPrior,
    Fault,
}

/// What follows on an instruction.
pub(crate) enum Flow {
    Next,
    /// It is executed again, once there is what it waits for.
    Again(Wait),
    /// The next one is, once there is what this one waits for.
    After(Wait),
    /// Another warp's turn.
    Yield,
    Branch(u32),
    Return,
}

/// A launch, as its blocks see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch {
    pub(crate) params: *const u8,
    pub(crate) param_bytes: u32,
    pub(crate) grid: [u32; 3],
    pub(crate) threads: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) dependent: bool,
    /// 0: all in order.
    pub(crate) seed: u64,
}

/// A barrier of the block: `bar.sync` and `bar.arrive`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Barrier {
    pub(crate) arrived: u32,
    pub(crate) needed: u32,
    pub(crate) phase: u64,
    /// Warps that wait, by their numbers.
    pub(crate) waiting: u32,
}

/// An mbarrier; the 8 bytes in memory are opaque.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mbarrier {
    pub(crate) needed: i64,
    pub(crate) pending: i64,
    pub(crate) bytes: i64,
    pub(crate) phase: u64,
    /// The clocks of arrivals in this phase, and of the phases before.
    pub(crate) clock: u32,
    /// The thread that has made it, and whether the engine sees it by a fence since.
    pub(crate) maker: u32,
    pub(crate) fenced: bool,
}

/// The first clocks are the barriers', the next one is for what is waited for at once.
pub(crate) const BARRIERS: u32 = 16;
pub(crate) const SCRATCH_CLOCK: u32 = BARRIERS;
const QUANTUM: u32 = 2000;
/// As many as no block of the tests needs by far: what executes more waits for what never comes.
const MOST_INSTRUCTIONS: u64 = if cfg!(test) { 100_000 } else { 20_000_000 };

pub(crate) struct Block<H> {
    pub(crate) program: Rc<Program>,
    pub(crate) host: H,
    pub(crate) launch: Launch,
    pub(crate) shared: *mut u8,
    pub(crate) warps: Vec<Warp>,
    pub(crate) barriers: [Barrier; BARRIERS as usize],
    pub(crate) mbarriers: HashMap<u32, Mbarrier>,
    pub(crate) clocks: u32,
    /// Of arrivals that have been made.
    pub(crate) spare_clocks: Vec<u32>,
    pub(crate) jobs: Vec<Job>,
    /// Where the products of each warpgroup stand: all four warps are to execute the same ones.
    pub(crate) products: Vec<Vec<u32>>,
    pub(crate) spare_registers: u32,
    pub(crate) instructions: u64,
    rng: u64,
    turn: usize,
}

impl<H: Host> Block<H> {
    /// `shared` is the block's shared memory, of which no more than `launch` says is touched.
    pub(crate) fn new(
        program: Rc<Program>,
        host: H,
        launch: Launch,
        at: [u32; 3],
        shared: *mut u8,
    ) -> Self {
        let threads: u32 = launch.threads.iter().product();
        let count = threads.div_ceil(32);
        let mut warps = Vec::new();
        let own = (65536 / (count * 32 * program.min_blocks).max(1) / 8 * 8).min(248);
        for number in 0..count {
            let here = (threads - number * 32).min(32);
            let live = if here == 32 { !0 } else { (1 << here) - 1 };
            let registers = program.spare.borrow_mut().pop();
            let registers = registers.unwrap_or_else(|| Registers::new(&program));
            let mut warp = Warp::new(number, live, &program, registers);
            warp.max_registers = own;
            if !launch.dependent {
                warp.waited = !0;
            }
            let [x, y, _] = launch.threads;
            for (at_register, special) in &program.specials {
                warp.set_special(*at_register, *special, |lane| {
                    let thread = number * 32 + lane;
                    match special {
                        Special::Tid(0) => thread % x,
                        Special::Tid(1) => thread / x % y,
                        Special::Tid(_) => thread / (x * y),
                        Special::Ntid(axis) => launch.threads[*axis],
                        Special::Ctaid(axis) => at[*axis],
                        Special::Nctaid(axis) => launch.grid[*axis],
                        Special::Laneid => lane,
                        Special::Warpid => number,
                        Special::Smid => 0,
                    }
                });
            }
            warps.push(warp);
        }
        let place = u64::from(at[0]) | u64::from(at[1]) << 24 | u64::from(at[2]) << 44;
        let rng = launch.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ place.wrapping_mul(0xd134_2543_de82_ef95)
            | 1;
        Self {
            products: vec![Vec::new(); count.div_ceil(4) as usize],
            program,
            host,
            launch,
            shared,
            warps,
            barriers: [Barrier::default(); BARRIERS as usize],
            mbarriers: HashMap::new(),
            clocks: SCRATCH_CLOCK + 1,
            spare_clocks: Vec::new(),
            jobs: Vec::new(),
            spare_registers: 0,
            instructions: 0,
            rng,
            turn: 0,
        }
    }

    /// A random number below `below`; 0 where all is in order.
    pub(crate) fn random(&mut self, below: u32) -> u32 {
        if self.launch.seed == 0 {
            return 0;
        }
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        ((self.rng >> 20) as u32) % below
    }

    /// Until the block has ended, waits for the kernel before, or is at fault.
    pub(crate) fn run(&mut self) -> Outcome {
        match self.turns() {
            Ok(outcome) => outcome,
            Err(Ended) => Outcome::Fault,
        }
    }

    fn turns(&mut self) -> Going<Outcome> {
        loop {
            // Bulk copies land as late as they may, or, by the seed, at any time.
            if !self.jobs.is_empty() && self.launch.seed != 0 && self.random(8) == 0 {
                self.land_a_load()?;
            }
            if self.instructions > MOST_INSTRUCTIONS {
                return self.never_ends();
            }
            if let Some(number) = self.next_warp() {
                let mut warp = std::mem::take(&mut self.warps[number]);
                let ran = self.run_warp(&mut warp);
                self.warps[number] = warp;
                ran?;
                continue;
            }
            if self.land_a_load()? || self.land_for_an_arrival()? {
                continue;
            }
            if self.warps.iter().all(|warp| warp.live == 0) {
                return Ok(Outcome::Ended);
            }
            let waits =
                |wait: Wait| self.warps.iter().any(|w| w.groups.iter().any(|g| g.wait == wait));
            if waits(Wait::Grid) && !self.host.prior_done() {
                return Ok(Outcome::WaitsForPrior);
            }
            self.say_deadlock();
            return Err(Ended);
        }
    }

    /// One that can go on: in turn, or by the seed any of them, those that are delayed last.
    fn next_warp(&mut self) -> Option<usize> {
        let count = self.warps.len();
        let from =
            if self.launch.seed == 0 { self.turn } else { self.random(count as u32) as usize };
        let prior_done = self.host.prior_done();
        let mut delayed = None;
        for i in 0..count {
            let number = (from + i) % count;
            let warp = &self.warps[number];
            if warp.live == 0
                || !warp.groups.iter().any(|group| self.can_go_on(warp, group, prior_done))
            {
                continue;
            }
            if self.warps[number].delay > 0 {
                self.warps[number].delay -= 1;
                delayed.get_or_insert(number);
                continue;
            }
            self.turn = (number + usize::from(self.launch.seed != 0)) % count;
            return Some(number);
        }
        delayed
    }

    fn can_go_on(&self, warp: &Warp, group: &Group, prior_done: bool) -> bool {
        match group.wait {
            Wait::Nothing => true,
            Wait::Converge => false,
            Wait::Barrier(id, phase) => self.barriers[id as usize].phase > phase,
            Wait::Mbarrier(at, phase) => {
                self.mbarriers.get(&at).is_none_or(|bar| bar.phase != phase)
            }
            Wait::Grid => prior_done,
            Wait::Registers(count) => self.spare_registers >= (count - warp.max_registers) * 32,
        }
    }

    fn run_warp(&mut self, warp: &mut Warp) -> Going {
        let program = Rc::clone(&self.program);
        let mut left = match self.launch.seed {
            0 => MOST_INSTRUCTIONS as u32,
            _ => 1 + self.random(QUANTUM),
        };
        let prior_done = self.host.prior_done();
        'group: loop {
            let can = |group: &Group| self.can_go_on(warp, group, prior_done);
            let mut ready = warp.groups.iter().enumerate().filter(|(_, group)| can(group));
            let chosen = match warp.others_first {
                0 => ready.min_by_key(|(_, group)| group.pc),
                _ => {
                    let count = ready.clone().count();
                    ready.nth(warp.asked as usize % count.max(1))
                }
            };
            let Some((at, _)) = chosen else { return Ok(()) };
            let mut group = warp.groups.swap_remove(at);
            group.wait = Wait::Nothing;
            loop {
                if !warp.groups.is_empty() && self.regroup(warp, &mut group, prior_done) {
                    warp.groups.push(group);
                    continue 'group;
                }
                let pc = group.pc as usize;
                let Some(instruction) = program.code.get(pc) else {
                    self.fault(warp, group.pc, format_args!("the kernel has no end"));
                    return Err(Ended);
                };
                warp.active = group.mask;
                if let Some(guard) = instruction.guard {
                    let holds = warp.predicate(guard.predicate);
                    warp.active &= if guard.is_negated { !holds } else { holds };
                }
                // What no lane executes does not count, but for a branch: that it was not taken tells.
                if warp.active != 0 || matches!(instruction.op, Op::Branch(_)) {
                    program.executed[pc].set(program.executed[pc].get() + 1);
                    self.instructions += 1;
                }
                let flow = if warp.active == 0 {
                    Flow::Next
                } else {
                    self.execute(warp, &group, &instruction.op)?
                };
                if warp.missing != 0 || warp.touched {
                    self.say_what_was_read(warp, group.pc);
                }
                left = left.saturating_sub(1);
                match flow {
                    Flow::Next => {
                        group.pc += 1;
                        if left == 0 {
                            warp.groups.push(group);
                            return Ok(());
                        }
                    }
                    Flow::Yield => {
                        group.pc += 1;
                        warp.groups.push(group);
                        warp.delay = self.random(16);
                        return Ok(());
                    }
                    Flow::Branch(target) => {
                        program.taken[pc].set(program.taken[pc].get() + 1);
                        let stay = group.mask & !warp.active;
                        if stay != 0 {
                            warp.groups.push(Group {
                                pc: target,
                                mask: warp.active,
                                wait: Wait::Nothing,
                            });
                            group.mask = stay;
                            group.pc += 1;
                        } else {
                            group.pc = target;
                        }
                        if left == 0 {
                            warp.groups.push(group);
                            return Ok(());
                        }
                    }
                    Flow::Return => {
                        warp.live &= !warp.active;
                        group.mask &= !warp.active;
                        if group.mask == 0 {
                            if warp.live == 0 {
                                self.end_warp(warp)?;
                                return Ok(());
                            }
                            continue 'group;
                        }
                        group.pc += 1;
                    }
                    Flow::Again(wait) => {
                        // It counts when it is done.
                        program.executed[pc].set(program.executed[pc].get() - 1);
                        self.instructions -= 1;
                        group.wait = wait;
                        warp.groups.push(group);
                        warp.delay = self.random(16);
                        continue 'group;
                    }
                    Flow::After(wait) => {
                        group.pc += 1;
                        group.wait = wait;
                        warp.groups.push(group);
                        warp.delay = self.random(16);
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Takes in the lanes that are at the same instruction; true where others are at a lower one.
    fn regroup(&mut self, warp: &mut Warp, group: &mut Group, prior_done: bool) -> bool {
        let mut at = 0;
        while at < warp.groups.len() {
            let other = warp.groups[at];
            if other.pc == group.pc && !matches!(other.wait, Wait::Barrier(..)) {
                group.mask |= other.mask;
                warp.groups.swap_remove(at);
                continue;
            }
            at += 1;
        }
        if warp.others_first > 0 {
            warp.others_first -= 1;
            return false;
        }
        warp.groups
            .iter()
            .any(|other| other.pc < group.pc && self.can_go_on(warp, other, prior_done))
    }

    /// What a warp has asked for happens before it is gone.
    fn end_warp(&mut self, warp: &mut Warp) -> Going {
        self.land_copies(warp, !0, 0, true)?;
        self.land_stores(warp, !0, 0, false)?;
        self.spare_registers += warp.max_registers * 32;
        if let Some(registers) = warp.take_registers() {
            self.program.spare.borrow_mut().push(registers);
        }
        Ok(())
    }

    // ---- what is said

    pub(crate) fn pc(&self, instruction: u32) -> u32 {
        self.program.first_pc + instruction
    }

    pub(crate) fn fault(&mut self, warp: &Warp, instruction: u32, text: std::fmt::Arguments<'_>) {
        let lane = warp.active.trailing_zeros().min(31);
        self.host.report(Kind::Fault, warp.thread(lane), self.pc(instruction), text);
    }

    #[cold]
    fn say_what_was_read(&mut self, warp: &mut Warp, instruction: u32) {
        let pc = self.pc(instruction);
        let opcode = self.program.opcodes.get(instruction as usize).cloned().unwrap_or_default();
        if warp.missing != 0 {
            let thread = warp.thread(warp.missing.trailing_zeros());
            let text = format_args!("{opcode} reads a register that was not written");
            self.host.report(Kind::Uninitialised, thread, pc, text);
        }
        if warp.touched {
            let text = format_args!("{opcode} touches a register of a wgmma that is under way");
            self.host.report(Kind::Race, warp.thread(0), pc, text);
        }
        warp.missing = 0;
        warp.touched = false;
    }

    fn never_ends<T>(&mut self) -> Going<T> {
        let running = self.warps.iter().find_map(|warp| Some((warp, warp.groups.first()?)));
        let (thread, pc) = running.map_or((0, 0), |(warp, group)| (warp.thread(0), group.pc));
        let text = format_args!("no end after {MOST_INSTRUCTIONS} instructions of a block");
        self.host.report(Kind::Fault, thread, self.pc(pc), text);
        Err(Ended)
    }

    fn say_deadlock(&mut self) {
        let is_divergent =
            self.warps.iter().flat_map(|w| &w.groups).any(|g| g.wait == Wait::Converge);
        let what = if is_divergent { "divergent warp collective" } else { "deadlock" };
        let mut text = format!("{what}: no warp can go on");
        let mut first = None;
        for warp in &self.warps {
            for group in &warp.groups {
                let back = u32::from(matches!(group.wait, Wait::Barrier(..)));
                let at = group.pc - back.min(group.pc);
                first.get_or_insert((warp.thread(group.mask.trailing_zeros().min(31)), at));
                let opcode =
                    self.program.opcodes.get(at as usize).map_or("its end", String::as_str);
                let what = match group.wait {
                    Wait::Converge => {
                        format!("has lanes {:#010x} in {opcode}", group.mask)
                    }
                    _ => format!("waits in {opcode}"),
                };
                let place = self.program.place(at as usize);
                text += &format!("\n  warp {} {what} at {place}", warp.number);
            }
        }
        let (thread, at) = first.unwrap_or((0, 0));
        self.host.report(Kind::Fault, thread, self.pc(at), format_args!("{text}\n "));
    }
}
