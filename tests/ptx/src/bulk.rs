//! Bulk and tensor copies: an engine of its own moves them, at any time, and tells an mbarrier or a
//! group that they are done.

use crate::block::{Block, SCRATCH_CLOCK};
use crate::boxes::{self, Chunk, Map};
use crate::host::{Access, Ended, Going, Host};
use crate::operations::{Bulk, BulkSize};
use crate::warp::{Group, Warp, lanes};

/// A copy under way.
pub(crate) struct Job {
    chunks: Vec<Chunk>,
    to: u32,
    bytes: u32,
    agent: u32,
    pc: u32,
    /// Of a load; a store belongs to a group of a thread.
    mbarrier: Option<u32>,
    thread: u32,
    group: u32,
}

impl<H: Host> Block<H> {
    pub(crate) fn bulk(&mut self, warp: &mut Warp, group: &Group, bulk: &Bulk) -> Going {
        let shared = self.addresses(warp, bulk.shared);
        let global = self.addresses(warp, bulk.global);
        let mbarriers = bulk.mbarrier.map(|at| self.addresses(warp, at));
        let sizes = match &bulk.what {
            BulkSize::Bytes(bytes) => Some(*warp.word(*bytes)),
            BulkSize::Box(_) => None,
        };
        let mut coordinates = Vec::new();
        if let BulkSize::Box(registers) = &bulk.what {
            for r in registers {
                coordinates.push(*warp.word(*r));
            }
        }
        let pc = self.pc(group.pc);
        for lane in lanes(warp.active) {
            let i = lane as usize;
            let to = shared[i] as u32;
            let (chunks, bytes) = match sizes {
                Some(sizes) => self.plain(warp, group, to, global[i], sizes[i])?,
                None => {
                    let at: Vec<i32> = coordinates.iter().map(|c| c[i] as i32).collect();
                    self.boxed(warp, group, to, global[i], &at)?
                }
            };
            let agent = self.host.new_agent(warp.thread(lane));
            let is_load = mbarriers.is_some();
            let mbarrier = mbarriers.map(|at| at[i] as u32);
            if let Some(at) = mbarrier
                && !self.mbarriers.contains_key(&at)
            {
                self.fault(warp, group.pc, format_args!("there is no mbarrier at {at:#x}"));
                return Err(Ended);
            }
            let access = Access { shared: true, write: is_load, constant: false, bytes };
            self.host.check(agent, u64::from(to), access, pc)?;
            if is_load {
                self.host.pending(agent, to, bytes, true, pc);
            }
            let (thread, of_group) = (warp.thread(lane), warp.bulk_group[i]);
            self.jobs.push(Job { chunks, to, bytes, agent, pc, mbarrier, thread, group: of_group });
        }
        Ok(())
    }

    fn plain(
        &mut self,
        warp: &Warp,
        group: &Group,
        to: u32,
        global: u64,
        bytes: u32,
    ) -> Going<(Vec<Chunk>, u32)> {
        if !to.is_multiple_of(16)
            || !global.is_multiple_of(16)
            || !bytes.is_multiple_of(16)
            || bytes == 0
        {
            let text = format_args!(
                "bulk copy of {bytes} bytes between {to:#x} and {global:#x}: not multiples of 16"
            );
            self.fault(warp, group.pc, text);
            return Err(Ended);
        }
        let chunk =
            |at: u32| Chunk { shared: at, global: global + u64::from(at), bytes: 16, inside: true };
        Ok(((0..bytes / 16).map(|i| chunk(i * 16)).collect(), bytes))
    }

    fn boxed(
        &mut self,
        warp: &Warp,
        group: &Group,
        to: u32,
        map: u64,
        at: &[i32],
    ) -> Going<(Vec<Chunk>, u32)> {
        let found: Option<Map> = self.host.tensor_map(map);
        let Some(map) = found.filter(|map| map.rank as usize == at.len()) else {
            self.fault(
                warp,
                group.pc,
                format_args!("no tensor map of rank {} at {map:#x}", at.len()),
            );
            return Err(Ended);
        };
        // The swizzle's atom, as the address is what is swizzled.
        let aligned = if map.swizzle == 3 { 1024 } else { 128 };
        if !to.is_multiple_of(aligned) {
            self.fault(
                warp,
                group.pc,
                format_args!("tensor copy to {to:#x}, no multiple of {aligned}"),
            );
            return Err(Ended);
        }
        Ok((boxes::chunks(&map, to, at), boxes::bytes(&map)))
    }

    /// One of the loads under way lands, the oldest, or by the seed any. Whether there was one.
    pub(crate) fn land_a_load(&mut self) -> Going<bool> {
        let loads: Vec<usize> = self
            .jobs
            .iter()
            .enumerate()
            .filter(|(_, job)| job.mbarrier.is_some())
            .map(|(i, _)| i)
            .collect();
        if loads.is_empty() {
            return Ok(false);
        }
        let at = loads[self.random(loads.len() as u32) as usize];
        let job = self.jobs.remove(at);
        for chunk in &job.chunks {
            let place = self.shared_at(u64::from(job.to + chunk.shared));
            if !chunk.inside {
                // SAFETY: within the box, whose bytes of shared memory were checked.
                unsafe { std::ptr::write_bytes(place, 0, chunk.bytes as usize) };
                continue;
            }
            let access =
                Access { shared: false, write: false, constant: false, bytes: chunk.bytes };
            self.host.check(job.agent, chunk.global, access, job.pc)?;
            // SAFETY: as above, and the host has checked what is read.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    chunk.global as *const u8,
                    place,
                    chunk.bytes as usize,
                )
            };
        }
        self.host.pending(job.agent, job.to, job.bytes, false, job.pc);
        let mbarrier = job.mbarrier.unwrap_or(0);
        if let Some(bar) = self.mbarriers.get_mut(&mbarrier) {
            bar.bytes -= i64::from(job.bytes);
        }
        self.arrive(mbarrier, 0, job.agent, job.pc)?;
        Ok(true)
    }

    /// Stores of lanes, of all groups but the `left` youngest: they read late, and write.
    pub(crate) fn land_stores(&mut self, warp: &mut Warp, mask: u32, left: u32) -> Going {
        let mut at = 0;
        while at < self.jobs.len() {
            let job = &self.jobs[at];
            let lane = job.thread % 32;
            let is_due = job.mbarrier.is_none()
                && job.thread / 32 == warp.number
                && mask >> lane & 1 == 1
                && (warp.live == 0 || job.group + left < warp.bulk_group[lane as usize]);
            if !is_due {
                at += 1;
                continue;
            }
            let job = self.jobs.remove(at);
            for chunk in job.chunks.iter().filter(|chunk| chunk.inside) {
                let access =
                    Access { shared: false, write: true, constant: false, bytes: chunk.bytes };
                self.host.check(job.agent, chunk.global, access, job.pc)?;
                let place = self.shared_at(u64::from(job.to + chunk.shared)).cast_const();
                // SAFETY: the host has checked both sides.
                unsafe {
                    std::ptr::copy_nonoverlapping(
                        place,
                        chunk.global as *mut u8,
                        chunk.bytes as usize,
                    )
                };
            }
            self.host.release_id(SCRATCH_CLOCK, job.agent);
            self.host.acquire(SCRATCH_CLOCK, warp.number, 1 << lane);
            self.host.clear_clock(SCRATCH_CLOCK);
        }
        Ok(())
    }
}
