//! Bulk and tensor copies: an engine of its own moves them, at any time, and tells an mbarrier or a
//! group that they are done.

use crate::block::{Block, SCRATCH_CLOCK};
use crate::boxes::{self, Chunk, Map};
use crate::host::{Access, Ended, Going, Host};
use crate::operations::{Bulk, BulkSize};
use crate::sync::Arriver;
use crate::warp::{Group, Warp, lanes};

/// A copy under way.
pub(crate) struct Job {
    chunks: Vec<Chunk>,
    to: u32,
    /// What it counts at its mbarrier.
    bytes: u32,
    /// Of shared memory: from where to where it reads or writes.
    ranges: Vec<(u32, u32)>,
    /// Of a store: what was read, once its reads were waited for.
    read: Option<Vec<u8>>,
    /// What reads, and of a store what writes.
    agent: u32,
    writer: u32,
    pc: u32,
    /// Of a load; a store belongs to a group of a thread.
    mbarrier: Option<u32>,
    thread: u32,
    group: u32,
}

/// Its chunks, bytes, and ranges of shared memory.
type Moved = (Vec<Chunk>, u32, Vec<(u32, u32)>);

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
            let (chunks, bytes, ranges) = match sizes {
                Some(sizes) => self.plain(warp, group, to, global[i], sizes[i])?,
                None => {
                    let at: Vec<i32> = coordinates.iter().map(|c| c[i] as i32).collect();
                    self.boxed(warp, group, to, global[i], &at)?
                }
            };
            let agent = self.host.new_agent(warp.thread(lane));
            let is_load = mbarriers.is_some();
            let mbarrier = mbarriers.map(|at| at[i] as u32);
            if let Some(at) = mbarrier {
                let fenced = self.mbarrier_at(warp, group, u64::from(at), lane)?.fenced;
                self.host.mbarrier_used(agent, at, fenced, pc);
            }
            for (at, bytes) in ranges.iter().copied() {
                let access = Access { shared: true, write: is_load, constant: false, bytes };
                self.host.check(agent, u64::from(at), access, pc)?;
                if is_load {
                    self.host.pending(agent, at, bytes, true, pc);
                }
            }
            let (thread, of_group) = (warp.thread(lane), warp.bulk_group[i]);
            let writer = if is_load { agent } else { self.host.new_agent(thread) };
            self.jobs.push(Job {
                chunks,
                to,
                bytes,
                ranges,
                read: None,
                agent,
                writer,
                pc,
                mbarrier,
                thread,
                group: of_group,
            });
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
    ) -> Going<Moved> {
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
        self.within(warp, group, bytes)?;
        Ok(((0..bytes / 16).map(|i| chunk(i * 16)).collect(), bytes, vec![(to, bytes)]))
    }

    fn boxed(&mut self, warp: &Warp, group: &Group, to: u32, map: u64, at: &[i32]) -> Going<Moved> {
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
        let bytes = boxes::bytes(&map);
        self.within(warp, group, bytes)?;
        let chunks = boxes::chunks(&map, to, at);
        // Swizzled lines that the box does not fill have gaps between them.
        let ranges = match boxes::is_dense(&map) {
            true => vec![(to, bytes)],
            false => chunks.iter().map(|chunk| (to + chunk.shared, chunk.bytes)).collect(),
        };
        Ok((chunks, bytes, ranges))
    }

    /// Before a list is made of all its chunks.
    fn within(&mut self, warp: &Warp, group: &Group, bytes: u32) -> Going {
        let all = self.launch.shared_bytes;
        if bytes <= all {
            return Ok(());
        }
        let text = format_args!("bulk copy of {bytes} bytes out of bounds: {all} of shared memory");
        self.fault(warp, group.pc, text);
        Err(Ended)
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
                // SAFETY: one of the ranges of shared memory that were checked holds the chunk.
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
        for (at, bytes) in &job.ranges {
            self.host.pending(job.agent, *at, *bytes, false, job.pc);
        }
        let mbarrier = job.mbarrier.unwrap_or(0);
        if let Some(bar) = self.mbarriers.get_mut(&mbarrier) {
            bar.bytes -= i64::from(job.bytes);
        }
        self.arrive(mbarrier, 0, Arriver::Now(job.agent), job.pc)?;
        Ok(true)
    }

    /// Stores of lanes, of all groups but the `left` youngest: they read late, and write. Where only
    /// reads are waited for, they write later, and nothing is known of it.
    pub(crate) fn land_stores(
        &mut self,
        warp: &mut Warp,
        mask: u32,
        left: u32,
        only_reads: bool,
    ) -> Going {
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
            let mut job = self.jobs.remove(at);
            let data = job.read.take().unwrap_or_else(|| self.what_it_reads(&job));
            let agents = if only_reads {
                vec![job.agent]
            } else {
                self.write(&job, &data)?;
                vec![job.agent, job.writer]
            };
            for agent in agents {
                self.host.release_id(SCRATCH_CLOCK, agent);
            }
            self.host.acquire(SCRATCH_CLOCK, warp.number, 1 << lane);
            self.host.clear_clock(SCRATCH_CLOCK);
            if only_reads {
                job.read = Some(data);
                self.jobs.insert(at, job);
                at += 1;
            }
        }
        Ok(())
    }

    fn what_it_reads(&self, job: &Job) -> Vec<u8> {
        let mut data = Vec::with_capacity(job.bytes as usize);
        for chunk in &job.chunks {
            let place = self.shared_at(u64::from(job.to + chunk.shared)).cast_const();
            // SAFETY: one of the ranges of shared memory that were checked holds the chunk.
            data.extend_from_slice(unsafe {
                std::slice::from_raw_parts(place, chunk.bytes as usize)
            });
        }
        data
    }

    fn write(&mut self, job: &Job, mut data: &[u8]) -> Going {
        for chunk in &job.chunks {
            let (own, rest) = data.split_at(chunk.bytes as usize);
            data = rest;
            if !chunk.inside {
                continue;
            }
            let bytes = chunk.bytes;
            let access = Access { shared: false, write: true, constant: false, bytes };
            self.host.check(job.writer, chunk.global, access, job.pc)?;
            let place = chunk.global as *mut u8;
            // SAFETY: the host has checked these bytes, which are device memory; `own` is not.
            unsafe { std::ptr::copy_nonoverlapping(own.as_ptr(), place, own.len()) };
        }
        Ok(())
    }
}
