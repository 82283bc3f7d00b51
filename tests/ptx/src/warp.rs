//! A warp: its registers, where its lanes are, and what they have asked for and not yet got.
//!
//! Lanes that are at the same instruction form a group. The group with the lowest one goes on, so that
//! those that have gone apart meet again where their paths do.

use std::collections::VecDeque;
use std::mem;

use crate::lanes::{Doubles, Words};
use crate::program::{Any, P, Program, R32, R64, Special};

/// What a register that nothing was written to reads as: no number.
const UNWRITTEN: u32 = 0xffff_ffff;

const OTHERS_FIRST: u32 = 100;

pub(crate) struct Registers {
    words: Vec<Words>,
    doubles: Vec<Doubles>,
    predicates: Vec<u32>,
    /// Which lanes have been written to.
    written: Vec<u32>,
    doubles_written: Vec<u32>,
    predicates_written: Vec<u32>,
    /// Of kernels with `wgmma`: how a word was used last, by it or another instruction.
    used: Vec<Used>,
    /// Of these: whether it is an accumulator of what is under way, or holds its A.
    busy: Vec<Busy>,
}

impl Registers {
    pub(crate) fn new(program: &Program) -> Self {
        let mut new = Self {
            words: vec![[UNWRITTEN; 32]; program.words as usize],
            doubles: vec![[u64::MAX; 32]; program.doubles as usize],
            predicates: vec![0; program.predicates as usize],
            written: Vec::new(),
            doubles_written: Vec::new(),
            predicates_written: Vec::new(),
            used: Vec::new(),
            busy: Vec::new(),
        };
        for (at, value) in &program.constants {
            new.words[at.0 as usize] = [*value; 32];
        }
        for (at, value) in &program.wide_constants {
            new.doubles[at.0 as usize] = [*value; 32];
        }
        for (at, value) in &program.predicate_constants {
            new.predicates[at.0 as usize] = *value;
        }
        new
    }

    /// As those of a block that begins: all but constants unwritten.
    pub(crate) fn reset(&mut self, program: &Program) {
        let blank = |written: &mut Vec<u32>, count: u32| {
            written.clear();
            written.resize(count as usize, 0);
        };
        blank(&mut self.written, program.words);
        blank(&mut self.doubles_written, program.doubles);
        blank(&mut self.predicates_written, program.predicates);
        if program.has_wgmma {
            self.used.clear();
            self.used.resize(program.words as usize, Used::default());
            self.busy.clear();
            self.busy.resize(program.words as usize, Busy::No);
        }
        for (at, _) in &program.constants {
            self.written[at.0 as usize] = !0;
        }
        for (at, _) in &program.wide_constants {
            self.doubles_written[at.0 as usize] = !0;
        }
        for (at, _) in &program.predicate_constants {
            self.predicates_written[at.0 as usize] = !0;
        }
    }
}

/// When a register was used last: after so many fences of `wgmma`, 1 for none; 0: never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Used {
    after: u32,
    by: By,
}

/// What has used a register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum By {
    /// An instruction that is no product.
    #[default]
    Other,
    /// A product, whose A is there.
    A,
    /// A product of so many columns, whose accumulator it is: others of that shape may follow.
    D(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Busy {
    No,
    A,
    D,
}

/// What a group of lanes waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Nothing,
    /// The other lanes that an instruction names.
    Converge,
    /// A barrier of the block, in the phase after so many.
    Barrier(u32, u64),
    /// An mbarrier whose phase, counted from its start, is this one.
    Mbarrier(u32, u64),
    /// The kernel before.
    Grid,
    /// So many registers more, of each thread.
    Registers(u32),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) pc: u32,
    pub(crate) mask: u32,
    pub(crate) wait: Wait,
}

/// `cp.async` of the lanes of an instruction that has not landed.
pub(crate) struct Copies {
    pub(crate) mask: u32,
    pub(crate) to: [u64; 32],
    pub(crate) from: [u64; 32],
    pub(crate) bytes: u32,
    pub(crate) read: [u32; 32],
    pub(crate) group: [u32; 32],
    pub(crate) pc: u32,
    /// Of all copies of the warp, in order.
    pub(crate) number: u64,
}

/// An arrival that is due once the copies before it have landed.
#[derive(Clone, Copy)]
pub(crate) struct CopyArrival {
    pub(crate) lane: u32,
    pub(crate) mbarrier: u32,
    pub(crate) before: u64,
    /// What the thread had done when it asked.
    pub(crate) clock: u32,
    pub(crate) pc: u32,
}

/// A `wgmma` of this warp's rows that is under way.
pub(crate) struct Product {
    pub(crate) pc: u32,
    pub(crate) agent: u32,
    pub(crate) group: u32,
    pub(crate) scale_d: bool,
    pub(crate) descriptors: [u64; 2],
}

#[derive(Default)]
pub(crate) struct Warp {
    pub(crate) number: u32,
    pub(crate) live: u32,
    pub(crate) groups: Vec<Group>,
    pub(crate) registers: Option<Registers>,
    pub(crate) local: Vec<u8>,
    /// Lanes that are executing an instruction.
    pub(crate) active: u32,
    /// Of them, those that have read a register that was not written.
    pub(crate) missing: u32,
    /// A register was touched while a product of it is under way.
    pub(crate) touched: bool,
    /// Lanes that it began with: some have ended where fewer are live.
    pub(crate) whole: u32,
    /// So many instructions go to lanes that are not at the lowest one, which waits in a loop.
    pub(crate) others_first: u32,
    /// How often some have asked in vain: whose turn it is then.
    pub(crate) asked: u32,
    /// Of the kernel before.
    pub(crate) waited: u32,
    pub(crate) copies: VecDeque<Copies>,
    pub(crate) copies_so_far: u64,
    pub(crate) copy_group: [u32; 32],
    pub(crate) arrivals: VecDeque<CopyArrival>,
    pub(crate) bulk_group: [u32; 32],
    pub(crate) products: VecDeque<Product>,
    pub(crate) product_group: u32,
    pub(crate) products_so_far: usize,
    pub(crate) fences: u32,
    /// A thread's, by `setmaxnreg`.
    pub(crate) max_registers: u32,
    pub(crate) registers_set: bool,
    /// Turns that it leaves to others.
    pub(crate) delay: u32,
    pub(crate) has_wgmma: bool,
}

impl Warp {
    pub(crate) fn new(number: u32, live: u32, program: &Program, mut registers: Registers) -> Self {
        registers.reset(program);
        Self {
            number,
            live,
            whole: live,
            groups: vec![Group { pc: 0, mask: live, wait: Wait::Nothing }],
            registers: Some(registers),
            local: vec![0xff; program.local_bytes as usize * 32],
            has_wgmma: program.has_wgmma,
            ..Self::default()
        }
    }

    /// The number of a lane's thread in the block.
    pub(crate) fn thread(&self, lane: u32) -> u32 {
        self.number * 32 + lane
    }

    fn own(&mut self) -> &mut Registers {
        self.registers.as_mut().expect("a warp that runs has registers")
    }

    pub(crate) fn set_special(&mut self, at: R32, special: Special, of: impl Fn(u32) -> u32) {
        let values = std::array::from_fn(|lane| of(lane as u32));
        let _ = special;
        let own = self.own();
        own.words[at.0 as usize] = values;
        own.written[at.0 as usize] = !0;
    }

    // ---- reading: that nothing was written before is noted

    pub(crate) fn word(&mut self, r: R32) -> &Words {
        let (active, checks) = (self.active, self.has_wgmma);
        let own = self.registers.as_mut().expect("a warp that runs has registers");
        self.missing |= active & !own.written[r.0 as usize];
        if checks {
            self.touched |= own.busy[r.0 as usize] != Busy::No;
            own.used[r.0 as usize] = Used { after: self.fences + 1, by: By::Other };
        }
        &own.words[r.0 as usize]
    }

    pub(crate) fn two(&mut self, r: [R32; 2]) -> [&Words; 2] {
        for r in r {
            self.word(r);
        }
        let own = self.registers.as_ref().expect("a warp that runs has registers");
        r.map(|r| &own.words[r.0 as usize])
    }

    pub(crate) fn three(&mut self, r: [R32; 3]) -> [&Words; 3] {
        for r in r {
            self.word(r);
        }
        let own = self.registers.as_ref().expect("a warp that runs has registers");
        r.map(|r| &own.words[r.0 as usize])
    }

    pub(crate) fn double(&mut self, r: R64) -> &Doubles {
        let own = self.registers.as_ref().expect("a warp that runs has registers");
        self.missing |= self.active & !own.doubles_written[r.0 as usize];
        &own.doubles[r.0 as usize]
    }

    pub(crate) fn two_doubles(&mut self, r: [R64; 2]) -> [&Doubles; 2] {
        for r in r {
            self.double(r);
        }
        let own = self.registers.as_ref().expect("a warp that runs has registers");
        r.map(|r| &own.doubles[r.0 as usize])
    }

    pub(crate) fn predicate(&mut self, p: P) -> u32 {
        let own = self.registers.as_ref().expect("a warp that runs has registers");
        self.missing |= self.active & !own.predicates_written[p.0 as usize];
        own.predicates[p.0 as usize]
    }

    /// The one value of the lanes that are active; none where they differ.
    pub(crate) fn uniform(&mut self, r: R32) -> Option<u32> {
        let active = self.active;
        let values = self.word(r);
        let mut of_lanes = lanes(active).map(|lane| values[lane as usize]);
        let first = of_lanes.next()?;
        of_lanes.all(|value| value == first).then_some(first)
    }

    /// Lanes at other instructions get a turn, before those that ask again whether they may go on.
    pub(crate) fn let_others(&mut self) {
        self.others_first = OTHERS_FIRST;
        self.asked = self.asked.wrapping_add(1);
    }

    // ---- writing, of the active lanes

    pub(crate) fn set_word(&mut self, r: R32, value: &Words) {
        let (active, fences, checks) = (self.active, self.fences, self.has_wgmma);
        let own = self.registers.as_mut().expect("a warp that runs has registers");
        let at = r.0 as usize;
        let to = &mut own.words[at];
        if active == !0 {
            *to = *value;
        } else {
            for (lane, (to, value)) in to.iter_mut().zip(value).enumerate() {
                *to = if active >> lane & 1 == 1 { *value } else { *to };
            }
        }
        own.written[at] |= active;
        if checks {
            own.used[at] = Used { after: fences + 1, by: By::Other };
            self.touched |= own.busy[at] != Busy::No;
        }
    }

    /// Of some lanes it is as if nothing had been written.
    pub(crate) fn unset_word(&mut self, r: R32, lanes: u32) {
        self.own().written[r.0 as usize] &= !lanes;
    }

    pub(crate) fn set_double(&mut self, r: R64, value: &Doubles) {
        let active = self.active;
        let own = self.own();
        let to = &mut own.doubles[r.0 as usize];
        if active == !0 {
            *to = *value;
        } else {
            for (lane, (to, value)) in to.iter_mut().zip(value).enumerate() {
                *to = if active >> lane & 1 == 1 { *value } else { *to };
            }
        }
        own.doubles_written[r.0 as usize] |= active;
    }

    pub(crate) fn set_predicate(&mut self, p: P, value: u32) {
        let active = self.active;
        let own = self.own();
        let to = &mut own.predicates[p.0 as usize];
        *to = *to & !active | value & active;
        own.predicates_written[p.0 as usize] |= active;
    }

    /// A register of either width; what is narrower than it is has zeros above.
    pub(crate) fn set_any(&mut self, to: Any, value: &Doubles) {
        match to {
            Any::Word(r) => self.set_word(r, &value.map(|value| value as u32)),
            Any::Double(r) => self.set_double(r, value),
            Any::Nothing => (),
        }
    }

    pub(crate) fn any(&mut self, from: Any) -> Doubles {
        match from {
            Any::Word(r) => self.word(r).map(u64::from),
            Any::Double(r) => *self.double(r),
            Any::Nothing => [0; 32],
        }
    }

    // ---- wgmma

    /// What a product uses: false where something else has since the last fence.
    pub(crate) fn use_for_product(&mut self, registers: &[R32], by: By) -> bool {
        let after = self.fences + 1;
        let own = self.own();
        let mut fenced = true;
        for r in registers {
            let used = &mut own.used[r.0 as usize];
            fenced &= used.after != after || used.by == by;
            *used = Used { after, by };
        }
        fenced
    }

    /// Registers of a product that begins: those that are read have to be written, and no one that is
    /// under way writes A or reads the accumulators from elsewhere.
    pub(crate) fn begin_product(&mut self, registers: &[R32], busy: Busy, reads: bool) {
        let other = if busy == Busy::A { Busy::D } else { Busy::A };
        let active = self.active;
        let own = self.registers.as_mut().expect("a warp that runs has registers");
        for r in registers {
            let at = r.0 as usize;
            self.missing |= if reads { active & !own.written[at] } else { 0 };
            self.touched |= own.busy[at] == other;
            own.busy[at] = busy;
            if busy == Busy::D {
                own.written[at] = !0;
            }
        }
    }

    pub(crate) fn set_busy(&mut self, registers: &[R32], busy: Busy) {
        let own = self.own();
        for r in registers {
            own.busy[r.0 as usize] = busy;
        }
    }

    /// A register without its being noted: the product that is under way reads and writes it.
    pub(crate) fn raw(&mut self, r: R32) -> &mut Words {
        &mut self.own().words[r.0 as usize]
    }

    pub(crate) fn take_registers(&mut self) -> Option<Registers> {
        mem::take(&mut self.registers)
    }
}

/// The numbers of the lanes of a mask.
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = u32> {
    (0..32).filter(move |lane| mask >> lane & 1 == 1)
}
