//! Barriers of the block, mbarriers, and what the lanes of a warp tell each other.

use crate::block::{BARRIERS, Block, Flow, Mbarrier};
use crate::host::{Ended, Going, Host};
use crate::operations::{self, Address, MbarrierOp, Op, Shuffle, ShuffleMode, Vote, VoteMode};
use crate::program::R32;
use crate::warp::{Group, Wait, Warp, lanes};

/// Who arrives at an mbarrier.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arriver {
    /// A thread, or an asynchronous operation.
    Now(u32),
    /// A thread, by what it had done when it released to this clock.
    Earlier(u32),
}

pub(crate) fn shuffle(warp: &mut Warp, shuffle: &Shuffle) {
    let [value, by, clamp, _] = shuffle.from;
    let (value, by, clamp) = (*warp.word(value), *warp.word(by), *warp.word(clamp));
    let (mut inside, mut unknown) = (0, 0);
    let active = warp.active;
    let got = std::array::from_fn(|lane| {
        let own = lane as u32;
        let (by, clamp, segment) = (by[lane] & 31, clamp[lane] & 31, clamp[lane] >> 8 & 31);
        let (lowest, highest) = (own & segment, own & segment | clamp & !segment);
        let (from, is_inside) = match shuffle.mode {
            ShuffleMode::Up => (own.wrapping_sub(by), own as i32 - by as i32 >= highest as i32),
            ShuffleMode::Down => (own + by, own + by <= highest),
            ShuffleMode::Butterfly => (own ^ by, own ^ by <= highest),
            ShuffleMode::Index => (lowest | by & !segment, lowest | by & !segment <= highest),
        };
        inside |= u32::from(is_inside) << lane;
        let from = if is_inside { from } else { own };
        // What one gets from a lane that does not take part, nothing says.
        unknown |= (!active >> from & 1) << lane;
        value[from as usize]
    });
    warp.set_word(shuffle.to, &got);
    warp.unset_word(shuffle.to, unknown & active);
    if let Some(predicate) = shuffle.inside {
        warp.set_predicate(predicate, inside);
    }
}

pub(crate) fn vote(warp: &mut Warp, vote: &Vote) {
    let (active, holds) = (warp.active, warp.predicate(vote.predicate) & warp.active);
    let all = |condition: bool| if condition { !0 } else { 0 };
    match vote.mode {
        VoteMode::Ballot(to) => warp.set_word(to, &[holds; 32]),
        VoteMode::Any(to) => warp.set_predicate(to, all(holds != 0)),
        VoteMode::All(to) => warp.set_predicate(to, all(holds == active)),
        VoteMode::Uniform(to) => warp.set_predicate(to, all(holds == active || holds == 0)),
    }
}

impl<H: Host> Block<H> {
    // ---- lanes that are together

    /// All lanes have to be here: `.aligned`. Of a block's barriers those that are left are enough.
    pub(crate) fn aligned(&mut self, warp: &Warp, group: &Group, what: &str) -> Going {
        let all = if what.starts_with("bar.") { warp.live } else { warp.whole };
        if warp.active == all {
            return Ok(());
        }
        let others = (all & !warp.active).count_ones();
        self.fault(
            warp,
            group.pc,
            format_args!("divergent {what}: {others} lanes of the warp are not here"),
        );
        Err(Ended)
    }

    /// Whether the lanes that `members` names are all here; else they are waited for.
    pub(crate) fn converged(
        &mut self,
        warp: &mut Warp,
        group: &Group,
        op: &Op,
        members: u32,
    ) -> Going<bool> {
        let what = match op {
            Op::Shuffle(_) => "shfl.sync",
            Op::Vote(_) => "vote.sync",
            Op::Elect(..) => "elect.sync",
            _ => "bar.warp.sync",
        };
        if warp.active & !members != 0 {
            self.fault(
                warp,
                group.pc,
                format_args!("{what}: a lane is not in its own mask {members:#010x}"),
            );
            return Err(Ended);
        }
        if members & !warp.live != 0 || group.mask & members & !warp.active != 0 {
            let text = "lanes that it names have ended, or do not execute it";
            self.fault(
                warp,
                group.pc,
                format_args!("divergent {what}: {text}, mask {members:#010x}"),
            );
            return Err(Ended);
        }
        Ok(members & !warp.active == 0)
    }

    // ---- barriers of the block

    /// Warps arrive as a whole, and count as 32 threads.
    pub(crate) fn barrier(
        &mut self,
        warp: &mut Warp,
        group: &Group,
        id: R32,
        count: Option<R32>,
        waits: bool,
    ) -> Going<Flow> {
        let what = if waits { "bar.sync" } else { "bar.arrive" };
        self.aligned(warp, group, what)?;
        let threads: u32 = self.launch.threads.iter().product();
        let count = match count {
            Some(count) => warp.uniform(count),
            None => Some(threads.next_multiple_of(32)),
        };
        let (Some(id), Some(count)) = (warp.uniform(id), count) else {
            self.fault(warp, group.pc, format_args!("{what}: lanes name different barriers"));
            return Err(Ended);
        };
        if id >= BARRIERS || count == 0 || count % 32 != 0 || count > threads.next_multiple_of(32) {
            self.fault(
                warp,
                group.pc,
                format_args!("{what} {id} of {count} threads, of a block of {threads}"),
            );
            return Err(Ended);
        }
        let barrier = &mut self.barriers[id as usize];
        if barrier.arrived > 0 && barrier.needed != count {
            let other = barrier.needed;
            self.fault(
                warp,
                group.pc,
                format_args!("barrier {id} is used with {other} and {count} threads"),
            );
            return Err(Ended);
        }
        barrier.needed = count;
        barrier.arrived += 32;
        let phase = barrier.phase;
        barrier.waiting |= u32::from(waits) << warp.number;
        let is_complete = barrier.arrived == count;
        let waiting = barrier.waiting;
        self.host.release(id, warp.number, warp.active);
        if !is_complete {
            return Ok(if waits { Flow::After(Wait::Barrier(id, phase)) } else { Flow::Next });
        }
        for number in lanes(waiting) {
            let live =
                if number == warp.number { warp.live } else { self.warps[number as usize].live };
            self.host.acquire(id, number, live);
        }
        self.host.clear_clock(id);
        let barrier = &mut self.barriers[id as usize];
        (barrier.arrived, barrier.waiting) = (0, 0);
        barrier.phase += 1;
        Ok(if waits { Flow::Yield } else { Flow::Next })
    }

    // ---- mbarriers

    /// The mbarrier that a lane uses: one that it sees to have been made.
    pub(crate) fn mbarrier_at(
        &mut self,
        warp: &Warp,
        group: &Group,
        at: u64,
        lane: u32,
    ) -> Going<&mut Mbarrier> {
        let key = at as u32;
        if !self.mbarriers.contains_key(&key) {
            self.fault(warp, group.pc, format_args!("there is no mbarrier at {at:#x}"));
            return Err(Ended);
        }
        self.host.mbarrier_used(warp.thread(lane), key, true, self.program.first_pc + group.pc);
        Ok(self.mbarriers.get_mut(&key).expect("it is there"))
    }

    /// The engine sees what lanes have made so far.
    pub(crate) fn fence_mbarriers(&mut self, warp: &Warp) {
        for bar in self.mbarriers.values_mut() {
            let is_own = bar.maker / 32 == warp.number && warp.active >> (bar.maker % 32) & 1 == 1;
            bar.fenced |= is_own;
        }
    }

    pub(crate) fn mbarrier(
        &mut self,
        warp: &mut Warp,
        group: &Group,
        mbarrier: &operations::Mbarrier,
    ) -> Going<Flow> {
        let at = self.addresses(warp, mbarrier.at);
        for lane in lanes(warp.active) {
            if !at[lane as usize].is_multiple_of(8) {
                self.fault(
                    warp,
                    group.pc,
                    format_args!("mbarrier at {:#x} is misaligned", at[lane as usize]),
                );
                return Err(Ended);
            }
        }
        let pc = self.pc(group.pc);
        match &mbarrier.op {
            MbarrierOp::Init(count) => {
                let count = *warp.word(*count);
                for lane in lanes(warp.active) {
                    self.init(warp, group, at[lane as usize], count[lane as usize], lane)?;
                }
            }
            MbarrierOp::Invalidate => {
                for lane in lanes(warp.active) {
                    self.mbarrier_at(warp, group, at[lane as usize], lane)?;
                    self.mbarriers.remove(&(at[lane as usize] as u32));
                    self.host.mbarrier(at[lane as usize] as u32, false);
                }
            }
            MbarrierOp::Expect(bytes) => {
                let bytes = *warp.word(*bytes);
                for lane in lanes(warp.active) {
                    self.mbarrier_at(warp, group, at[lane as usize], lane)?.bytes +=
                        i64::from(bytes[lane as usize]);
                }
            }
            MbarrierOp::Arrive { state, count, expect, drop } => {
                let counts = count.map_or([1; 32], |count| *warp.word(count));
                let bytes = expect.map_or([0; 32], |bytes| *warp.word(bytes));
                let mut states = [0; 32];
                for lane in lanes(warp.active) {
                    let i = lane as usize;
                    let bar = self.mbarrier_at(warp, group, at[i], lane)?;
                    bar.bytes += i64::from(bytes[i]);
                    states[i] = bar.phase;
                    let count = i64::from(counts[i]);
                    bar.needed -= if *drop { count } else { 0 };
                    self.arrive(at[i] as u32, count, Arriver::Now(warp.thread(lane)), pc)?;
                }
                warp.set_any(*state, &states);
            }
            MbarrierOp::Test { done, parity, state, suspends } => {
                let parities = parity.map(|parity| *warp.word(parity));
                let states = state.map(|state| *warp.double(state));
                let mut complete = 0;
                let mut pending = None;
                for lane in lanes(warp.active) {
                    let i = lane as usize;
                    let bar = self.mbarrier_at(warp, group, at[i], lane)?;
                    let is_complete = match (parities, states) {
                        (Some(parity), _) => bar.phase & 1 != u64::from(parity[i] & 1),
                        (_, Some(state)) => bar.phase > state[i],
                        _ => true,
                    };
                    let (phase, clock) = (bar.phase, bar.clock);
                    if is_complete {
                        complete |= 1 << lane;
                        self.host.acquire(clock + 1, warp.number, 1 << lane);
                    } else {
                        pending = Some((at[i] as u32, phase));
                    }
                }
                // None of them can go on: the warp is not asked again before one can.
                if complete == 0
                    && *suspends
                    && let Some((at, phase)) = pending
                {
                    return Ok(Flow::Again(Wait::Mbarrier(at, phase)));
                }
                warp.set_predicate(*done, complete);
                if complete == warp.active {
                    return Ok(Flow::Next);
                }
                warp.let_others();
                return Ok(Flow::Yield);
            }
        }
        Ok(Flow::Next)
    }

    fn init(&mut self, warp: &Warp, group: &Group, at: u64, count: u32, lane: u32) -> Going {
        if count == 0 || count >= 1 << 20 {
            self.fault(warp, group.pc, format_args!("mbarrier.init of {count} arrivals"));
            return Err(Ended);
        }
        let access = crate::host::Access { shared: true, write: true, constant: false, bytes: 8 };
        let pc = self.pc(group.pc);
        self.host.check(warp.thread(lane), at, access, pc)?;
        let clock = self.new_clocks(2);
        let (needed, key, maker) = (i64::from(count), at as u32, warp.thread(lane));
        let (bytes, phase, fenced) = (0, 0, false);
        let bar = Mbarrier { needed, pending: needed, bytes, phase, clock, maker, fenced };
        self.mbarriers.insert(key, bar);
        self.host.mbarrier(key, true);
        Ok(())
    }

    pub(crate) fn new_clocks(&mut self, count: u32) -> u32 {
        self.clocks += count;
        self.clocks - count
    }

    /// What counts bytes alone has a `count` of 0.
    pub(crate) fn arrive(&mut self, at: u32, count: i64, by: Arriver, pc: u32) -> Going {
        let Some(bar) = self.mbarriers.get_mut(&at) else {
            let text = format_args!("the mbarrier at {at:#x} is gone when it is arrived at");
            self.host.report(crate::host::Kind::Fault, 0, pc, text);
            return Err(Ended);
        };
        bar.pending -= count;
        let (clock, pending) = (bar.clock, bar.pending);
        match by {
            Arriver::Now(id) => self.host.release_id(clock, id),
            Arriver::Earlier(snapshot) => self.host.move_clock(snapshot, clock),
        }
        if pending < 0 {
            let text = format_args!("mbarrier {at:#x}: more arrivals than its count");
            self.host.report(crate::host::Kind::Fault, 0, pc, text);
            return Err(Ended);
        }
        self.complete_if_due(at);
        Ok(())
    }

    pub(crate) fn complete_if_due(&mut self, at: u32) {
        if let Some(bar) = self.mbarriers.get_mut(&at)
            && bar.pending == 0
            && bar.bytes == 0
        {
            bar.phase += 1;
            bar.pending = bar.needed;
            let clock = bar.clock;
            self.host.move_clock(clock, clock + 1);
        }
    }

    /// Of each lane: an address of shared memory, of device memory, or of a parameter's space.
    pub(crate) fn addresses(&self, warp: &mut Warp, at: Address) -> [u64; 32] {
        let offset = at.offset as u64;
        match at.base {
            operations::Base::Word(r) => {
                warp.word(r).map(|base| u64::from(base.wrapping_add(offset as u32)))
            }
            operations::Base::Double(r) => warp.double(r).map(|base| base.wrapping_add(offset)),
            operations::Base::Fixed => [offset; 32],
        }
    }
}
