//! One instruction of a group of lanes.

use crate::block::{Block, Flow};
use crate::host::{Ended, Going, Host};
use crate::operations::Op;
use crate::program::R32;
use crate::tensor;
use crate::warp::{Group, Wait, Warp};

impl<H: Host> Block<H> {
    pub(crate) fn execute(&mut self, warp: &mut Warp, group: &Group, op: &Op) -> Going<Flow> {
        match op {
            Op::One(f, d, a) => {
                let value = f(warp.word(*a));
                warp.set_word(*d, &value);
            }
            Op::Two(f, d, from) => {
                let [a, b] = warp.two(*from);
                let value = f(a, b);
                warp.set_word(*d, &value);
            }
            Op::Three(f, d, from) => {
                let [a, b, c] = warp.three(*from);
                let value = f(a, b, c);
                warp.set_word(*d, &value);
            }
            Op::OneDouble(f, d, a) => {
                let value = f(warp.double(*a));
                warp.set_double(*d, &value);
            }
            Op::TwoDouble(f, d, from) => {
                let [a, b] = warp.two_doubles(*from);
                let value = f(a, b);
                warp.set_double(*d, &value);
            }
            Op::ThreeDouble(f, d, [a, b, c]) => {
                let c = *warp.double(*c);
                let [a, b] = warp.two_doubles([*a, *b]);
                let value = f(a, b, &c);
                warp.set_double(*d, &value);
            }
            Op::DoubleBy(f, d, a, by) => {
                let by = *warp.word(*by);
                let value = f(warp.double(*a), &by);
                warp.set_double(*d, &value);
            }
            Op::Widen(f, d, a) => {
                let value = f(warp.word(*a));
                warp.set_double(*d, &value);
            }
            Op::WidenTwo(f, d, from) => {
                let [a, b] = warp.two(*from);
                let value = f(a, b);
                warp.set_double(*d, &value);
            }
            Op::WidenThree(f, d, from, c) => {
                let c = *warp.double(*c);
                let [a, b] = warp.two(*from);
                let value = f(a, b, &c);
                warp.set_double(*d, &value);
            }
            Op::Narrow(f, d, a) => {
                let value = f(warp.double(*a));
                warp.set_word(*d, &value);
            }
            Op::Compare(f, p, from) => {
                let [a, b] = warp.two(*from);
                let value = f(a, b);
                warp.set_predicate(*p, value);
            }
            Op::CompareDouble(f, p, from) => {
                let [a, b] = warp.two_doubles(*from);
                let value = f(a, b);
                warp.set_predicate(*p, value);
            }
            Op::Select(d, from, p) => {
                let holds = warp.predicate(*p);
                let [a, b] = warp.two(*from);
                let value = std::array::from_fn(|i| if holds >> i & 1 == 1 { a[i] } else { b[i] });
                warp.set_word(*d, &value);
            }
            Op::SelectDouble(d, from, p) => {
                let holds = warp.predicate(*p);
                let [a, b] = warp.two_doubles(*from);
                let value = std::array::from_fn(|i| if holds >> i & 1 == 1 { a[i] } else { b[i] });
                warp.set_double(*d, &value);
            }
            Op::PredicateOne(f, d, a) => {
                let value = f(warp.predicate(*a));
                warp.set_predicate(*d, value);
            }
            Op::PredicateTwo(f, d, [a, b]) => {
                let value = f(warp.predicate(*a), warp.predicate(*b));
                warp.set_predicate(*d, value);
            }
            Op::Insert(d, [a, b, at, count]) => {
                let (at, count) = (*warp.word(*at), *warp.word(*count));
                let [a, b] = warp.two([*a, *b]);
                let value = std::array::from_fn(|i| {
                    insert(a[i].into(), b[i].into(), at[i], count[i], 32) as u32
                });
                warp.set_word(*d, &value);
            }
            Op::InsertDouble(d, from, [at, count]) => {
                let (at, count) = (*warp.word(*at), *warp.word(*count));
                let [a, b] = warp.two_doubles(*from);
                let value = std::array::from_fn(|i| insert(a[i], b[i], at[i], count[i], 64));
                warp.set_double(*d, &value);
            }
            Op::Join(d, from) => {
                let [low, high] = warp.two(*from);
                let value = std::array::from_fn(|i| low[i] & 0xffff | high[i] << 16);
                warp.set_word(*d, &value);
            }
            Op::JoinDouble(d, from) => {
                let [low, high] = warp.two(*from);
                let value = std::array::from_fn(|i| u64::from(low[i]) | u64::from(high[i]) << 32);
                warp.set_double(*d, &value);
            }
            Op::Split([low, high], a) => {
                let value = *warp.word(*a);
                warp.set_any(*low, &value.map(|x| u64::from(x & 0xffff)));
                warp.set_any(*high, &value.map(|x| u64::from(x >> 16)));
            }
            Op::SplitDouble([low, high], a) => {
                let value = *warp.double(*a);
                warp.set_any(*low, &value.map(|x| x & 0xffff_ffff));
                warp.set_any(*high, &value.map(|x| x >> 32));
            }
            Op::Clock(to) => warp.set_any(*to, &[self.instructions; 32]),
            Op::ParamAddress(d, a) => {
                let start = self.launch.params as u64;
                let value = warp.double(*a).map(|offset| start + offset);
                warp.set_double(*d, &value);
            }
            Op::Branch(target) => return Ok(Flow::Branch(*target)),
            Op::Return => return Ok(Flow::Return),
            Op::Trap => {
                self.fault(warp, group.pc, format_args!("trap"));
                return Err(Ended);
            }
            Op::LoadParam(load) => self.load_param(warp, group, load)?,
            Op::Load(load) => self.load(warp, group, load)?,
            Op::Store(store) => self.store(warp, group, store)?,
            Op::Atomic(atomic) => self.atomic(warp, group, atomic)?,
            Op::BarrierSync(id, count) => return self.barrier(warp, group, *id, *count, true),
            Op::BarrierArrive(id, count) => {
                return self.barrier(warp, group, *id, Some(*count), false);
            }
            Op::BarrierWarp(members) => {
                let members = self.members(warp, group, *members)?;
                if !self.converged(warp, group, op, members)? {
                    return Ok(Flow::Again(Wait::Converge));
                }
                self.host.sync_warp(warp.number, members);
                return Ok(if self.random(4) == 1 { Flow::Yield } else { Flow::Next });
            }
            Op::Shuffle(shuffle) => {
                let members = self.members(warp, group, shuffle.from[3])?;
                if !self.converged(warp, group, op, members)? {
                    return Ok(Flow::Again(Wait::Converge));
                }
                crate::sync::shuffle(warp, shuffle);
            }
            Op::Vote(vote) => {
                let members = self.members(warp, group, vote.members)?;
                if !self.converged(warp, group, op, members)? {
                    return Ok(Flow::Again(Wait::Converge));
                }
                crate::sync::vote(warp, vote);
            }
            Op::Elect(to, elected, members) => {
                let members = self.members(warp, group, *members)?;
                if !self.converged(warp, group, op, members)? {
                    return Ok(Flow::Again(Wait::Converge));
                }
                let leader = members.trailing_zeros();
                warp.set_any(*to, &[u64::from(leader); 32]);
                warp.set_predicate(*elected, 1 << leader);
            }
            Op::Ldmatrix(matrix) => self.ldmatrix(warp, group, matrix)?,
            Op::Stmatrix(matrix) => self.stmatrix(warp, group, matrix)?,
            Op::Movmatrix(d, a) => {
                self.aligned(warp, group, "movmatrix")?;
                let value = tensor::movmatrix(warp.word(*a));
                warp.set_word(*d, &value);
            }
            Op::Mma(mma) => {
                self.aligned(warp, group, "mma")?;
                let zero = [0; 32];
                let (mut a, mut b) = ([zero; 4], [zero; 2]);
                for (a, r) in a.iter_mut().zip(&mma.a) {
                    *a = *warp.word(*r);
                }
                for (b, r) in b.iter_mut().zip(&mma.b) {
                    *b = *warp.word(*r);
                }
                let c = mma.c.map(|r: R32| *warp.word(r));
                let [kind_a, kind_b] = mma.elements;
                let d =
                    tensor::mma(&a[..mma.a.len()], &b[..mma.b.len()], &c, mma.k, kind_a, kind_b);
                for (r, value) in mma.d.iter().zip(&d) {
                    warp.set_word(*r, value);
                }
            }
            Op::CopyAsync(copy) => self.copy_async(warp, group, copy)?,
            Op::CopyCommit => {
                for lane in crate::warp::lanes(warp.active) {
                    warp.copy_group[lane as usize] += 1;
                }
            }
            Op::CopyWait(left) => {
                self.land_copies(warp, warp.active, *left, false)?;
                return Ok(if self.random(4) == 1 { Flow::Yield } else { Flow::Next });
            }
            Op::CopyWaitAll => self.land_copies(warp, warp.active, 0, true)?,
            Op::CopyArrive(at, noinc) => self.copy_arrive(warp, group, *at, *noinc)?,
            Op::Mbarrier(mbarrier) => return self.mbarrier(warp, group, mbarrier),
            Op::FenceProxy => self.host.fence_proxy(warp.number, warp.active),
            Op::FenceInit => self.fence_mbarriers(warp),
            Op::Bulk(bulk) => self.bulk(warp, group, bulk)?,
            Op::BulkCommit => {
                for lane in crate::warp::lanes(warp.active) {
                    warp.bulk_group[lane as usize] += 1;
                }
            }
            Op::BulkWait(left, only_reads) => {
                self.land_stores(warp, warp.active, *left, *only_reads)?;
            }
            Op::Wgmma(wgmma) => self.wgmma(warp, group, wgmma)?,
            Op::WgmmaFence => {
                self.aligned(warp, group, "wgmma.fence")?;
                warp.fences += 1;
            }
            Op::WgmmaCommit => {
                self.aligned(warp, group, "wgmma.commit_group")?;
                warp.product_group += 1;
            }
            Op::WgmmaWait(left) => {
                self.aligned(warp, group, "wgmma.wait_group")?;
                self.finish_products(warp, *left)?;
                return Ok(if self.random(4) == 1 { Flow::Yield } else { Flow::Next });
            }
            Op::SetMaxRegisters(count, increase) => {
                return self.set_max_registers(warp, group, *count, *increase);
            }
            Op::GridWait => {
                if !self.host.prior_done() {
                    return Ok(Flow::Again(Wait::Grid));
                }
                warp.waited |= warp.active;
                self.host.has_waited(warp.number, warp.active);
            }
            Op::GridLaunch => self.host.let_next(),
        }
        Ok(Flow::Next)
    }

    /// The mask of members, which is the same for all of them.
    fn members(&mut self, warp: &mut Warp, group: &Group, mask: R32) -> Going<u32> {
        if let Some(members) = warp.uniform(mask) {
            return Ok(members);
        }
        self.fault(warp, group.pc, format_args!("lanes name different masks"));
        Err(Ended)
    }

    /// From a pool of the block: what others have given back.
    fn set_max_registers(
        &mut self,
        warp: &mut Warp,
        group: &Group,
        count: u32,
        increase: bool,
    ) -> Going<Flow> {
        self.aligned(warp, group, "setmaxnreg")?;
        let own = warp.max_registers;
        // What the assembler gives a thread at first is not in PTX: only later ones are held to it.
        let is_other_way = warp.registers_set && (count > own) != increase;
        warp.registers_set = true;
        if !(24..=256).contains(&count) || !count.is_multiple_of(8) || is_other_way {
            self.fault(warp, group.pc, format_args!("setmaxnreg from {own} to {count} registers"));
            return Err(Ended);
        }
        if count > own {
            if self.spare_registers < (count - own) * 32 {
                return Ok(Flow::Again(Wait::Registers(count)));
            }
            self.spare_registers -= (count - own) * 32;
        } else {
            self.spare_registers += (own - count) * 32;
        }
        warp.max_registers = count;
        Ok(Flow::Next)
    }
}

/// The lower `count` bits of a in b, from bit `at` on.
pub(crate) fn insert(a: u64, b: u64, at: u32, count: u32, bits: u32) -> u64 {
    let (at, count) = (at & 0xff, count & 0xff);
    let mut result = b;
    for i in 0..count {
        if at + i < bits {
            let bit = a >> i & 1;
            result = result & !(1 << (at + i)) | bit << (at + i);
        }
    }
    result
}
