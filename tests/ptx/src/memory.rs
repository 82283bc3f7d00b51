//! Loads, stores, atomics, `ldmatrix` and its like, and `cp.async`.

use crate::block::Block;
use crate::host::{Access, Addresses, Atomic, CopyBytes, Ended, Going, Host};
use crate::lanes::Words;
use crate::operations::{Address, Arithmetic, AtomicOp, CopyAsync, Load, Matrix, Space, Store};
use crate::program::SHARED_BASE;
use crate::sync::Arriver;
use crate::tensor;
use crate::warp::{Copies, CopyArrival, Group, Warp, lanes};

/// Generic addresses of shared and local memory begin here, above all of the host's.
pub(crate) const SHARED_WINDOW: u64 = 1 << 56;
pub(crate) const LOCAL_WINDOW: u64 = 1 << 57;

/// Reads a number of 1 to 8 bytes.
///
/// # Safety
/// So many bytes are readable there.
unsafe fn read(at: *const u8, bytes: u32) -> u64 {
    // SAFETY: as the caller says; nothing is asked of the alignment.
    unsafe {
        match bytes {
            1 => u64::from(at.read()),
            2 => u64::from(at.cast::<u16>().read_unaligned()),
            4 => u64::from(at.cast::<u32>().read_unaligned()),
            _ => at.cast::<u64>().read_unaligned(),
        }
    }
}

/// # Safety
/// So many bytes are writable there.
unsafe fn write(at: *mut u8, bytes: u32, value: u64) {
    // SAFETY: as the caller says; nothing is asked of the alignment.
    unsafe {
        match bytes {
            1 => at.write(value as u8),
            2 => at.cast::<u16>().write_unaligned(value as u16),
            4 => at.cast::<u32>().write_unaligned(value as u32),
            _ => at.cast::<u64>().write_unaligned(value),
        }
    }
}

impl<H: Host> Block<H> {
    /// Where a shared address lies; it was checked to be inside.
    pub(crate) fn shared_at(&self, at: u64) -> *mut u8 {
        self.shared.wrapping_add((at - u64::from(SHARED_BASE)) as usize)
    }

    /// All lanes are aligned to so many bytes, and within shared memory where it is meant.
    pub(crate) fn aligned_to(
        &mut self,
        warp: &Warp,
        group: &Group,
        mask: u32,
        at: &Addresses,
        bytes: u32,
    ) -> Going {
        match lanes(mask).find(|lane| !at[*lane as usize].is_multiple_of(u64::from(bytes))) {
            None => Ok(()),
            Some(lane) => {
                let at = at[lane as usize];
                let opcode = self.program.opcodes[group.pc as usize].clone();
                self.fault(
                    warp,
                    group.pc,
                    format_args!("{opcode} of {bytes} bytes is misaligned at {at:#x}"),
                );
                Err(Ended)
            }
        }
    }

    /// Checks an access of the active lanes; the addresses are then those of the host's memory.
    fn reach(
        &mut self,
        warp: &mut Warp,
        group: &Group,
        at: Address,
        space: Space,
        access: Access,
    ) -> Going<[*mut u8; 32]> {
        let at = self.addresses(warp, at);
        self.aligned_to(warp, group, warp.active, &at, access.bytes)?;
        let pc = self.pc(group.pc);
        let mut places = [std::ptr::null_mut(); 32];
        let (shared, local) = match space {
            Space::Global => (0, 0),
            Space::Shared => (warp.active, 0),
            Space::Local => (0, warp.active),
            Space::Generic => lanes(warp.active).fold((0, 0), |(shared, local), lane| {
                let at = at[lane as usize];
                let is_local = at >= LOCAL_WINDOW;
                let is_shared = !is_local && at >= SHARED_WINDOW;
                (shared | u32::from(is_shared) << lane, local | u32::from(is_local) << lane)
            }),
        };
        let device = warp.active & !shared & !local;
        if device != 0 {
            self.host.access(warp.number, device, &at, access, pc)?;
            for lane in lanes(device) {
                places[lane as usize] = at[lane as usize] as *mut u8;
            }
        }
        if shared != 0 {
            let at = at.map(|at| at & (SHARED_WINDOW - 1));
            let access = Access { shared: true, ..access };
            self.host.access(warp.number, shared, &at, access, pc)?;
            for lane in lanes(shared) {
                places[lane as usize] = self.shared_at(at[lane as usize]);
            }
        }
        for lane in lanes(local) {
            let own = self.program.local_bytes as usize;
            let offset = (at[lane as usize] & (LOCAL_WINDOW - 1)) as usize;
            if offset + access.bytes as usize > own {
                self.fault(warp, group.pc, format_args!("local address {offset} of {own} bytes"));
                return Err(Ended);
            }
            places[lane as usize] = &raw mut warp.local[lane as usize * own + offset];
        }
        Ok(places)
    }

    pub(crate) fn load(&mut self, warp: &mut Warp, group: &Group, load: &Load) -> Going {
        let bytes = load.kind.bytes * load.to.len() as u32;
        let access = Access { shared: false, write: false, constant: load.constant, bytes };
        let places = self.reach(warp, group, load.at, load.space, access)?;
        for (i, to) in load.to.iter().enumerate() {
            let mut values = [0; 32];
            for lane in lanes(warp.active) {
                let place = places[lane as usize].wrapping_add(i * load.kind.bytes as usize);
                // SAFETY: `reach` has had the host check all bytes of the access, or, of local memory,
                // has done so itself.
                let value = unsafe { read(place, load.kind.bytes) };
                values[lane as usize] = value;
            }
            if load.kind.signed {
                values = values.map(|value| extend(value, load.kind.bytes, load.register_bytes));
            }
            warp.set_any(*to, &values);
        }
        Ok(())
    }

    pub(crate) fn store(&mut self, warp: &mut Warp, group: &Group, store: &Store) -> Going {
        let bytes = store.kind.bytes * store.from.len() as u32;
        let access = Access { shared: false, write: true, constant: false, bytes };
        let places = self.reach(warp, group, store.at, store.space, access)?;
        for (i, from) in store.from.iter().enumerate() {
            let values = warp.any(*from);
            for lane in lanes(warp.active) {
                let place = places[lane as usize].wrapping_add(i * store.kind.bytes as usize);
                // SAFETY: as in `load`.
                unsafe { write(place, store.kind.bytes, values[lane as usize]) };
            }
        }
        Ok(())
    }

    pub(crate) fn load_param(&mut self, warp: &mut Warp, group: &Group, load: &Load) -> Going {
        let at = self.addresses(warp, load.at);
        let bytes = load.kind.bytes;
        let end = u64::from(self.launch.param_bytes);
        let all = bytes * load.to.len() as u32;
        self.aligned_to(warp, group, warp.active, &at, all)?;
        if let Some(lane) = lanes(warp.active).find(|i| at[*i as usize] + u64::from(all) > end) {
            let offset = at[lane as usize];
            self.fault(warp, group.pc, format_args!("parameter {offset} of {end} bytes"));
            return Err(Ended);
        }
        for (i, to) in load.to.iter().enumerate() {
            let mut values = [0; 32];
            for lane in lanes(warp.active) {
                let offset = at[lane as usize] as usize + i * bytes as usize;
                let place = self.launch.params.wrapping_add(offset);
                // SAFETY: within the parameters, which are readable as long as the launch runs.
                values[lane as usize] = unsafe { read(place, bytes) };
            }
            if load.kind.signed {
                values = values.map(|value| extend(value, bytes, load.register_bytes));
            }
            warp.set_any(*to, &values);
        }
        Ok(())
    }

    pub(crate) fn atomic(&mut self, warp: &mut Warp, group: &Group, op: &AtomicOp) -> Going {
        let at = self.addresses(warp, op.at);
        self.aligned_to(warp, group, warp.active, &at, 4)?;
        let pc = self.pc(group.pc);
        let mut operands = [[0; 32]; 2];
        for (values, r) in operands.iter_mut().zip(&op.operands) {
            *values = *warp.word(*r);
        }
        let order = Atomic { acquire: op.acquire, release: op.release, device: op.device };
        let mut old = [0; 32];
        // Of several lanes at one address the order is open.
        let reversed = self.random(2) == 1;
        let mut order_of_lanes: Vec<u32> = lanes(warp.active).collect();
        if reversed {
            order_of_lanes.reverse();
        }
        for lane in order_of_lanes {
            let i = lane as usize;
            self.host.atomic(warp.thread(lane), at[i], op.shared, order, pc)?;
            let place = if op.shared { self.shared_at(at[i]) } else { at[i] as *mut u8 };
            // SAFETY: the host has checked these 4 bytes.
            let before = unsafe { read(place, 4) } as u32;
            let after = change(op.arithmetic, before, operands[0][i], operands[1][i]);
            // SAFETY: as above.
            unsafe { write(place, 4, u64::from(after)) };
            old[i] = u64::from(before);
        }
        warp.set_any(op.to, &old);
        Ok(())
    }

    // ---- matrices

    pub(crate) fn ldmatrix(&mut self, warp: &mut Warp, group: &Group, matrix: &Matrix) -> Going {
        self.aligned(warp, group, "ldmatrix")?;
        let at = self.addresses(warp, matrix.at);
        let rows = matrix.registers.len() as u32 * 8;
        let mask = if rows == 32 { !0 } else { (1 << rows) - 1 };
        self.aligned_to(warp, group, mask, &at, 16)?;
        let pc = self.pc(group.pc);
        let access = Access { shared: true, write: false, constant: false, bytes: 16 };
        self.host.access(warp.number, mask, &at, access, pc)?;
        let mut values = [[0; 16]; 32];
        for lane in lanes(mask) {
            let place = self.shared_at(at[lane as usize]).cast_const().cast::<[u8; 16]>();
            // SAFETY: the host has checked these 16 bytes.
            values[lane as usize] = unsafe { place.read_unaligned() };
        }
        let loaded = tensor::ldmatrix(&values, matrix.registers.len(), matrix.transposed);
        for (r, value) in matrix.registers.iter().zip(&loaded) {
            warp.set_word(*r, value);
        }
        Ok(())
    }

    pub(crate) fn stmatrix(&mut self, warp: &mut Warp, group: &Group, matrix: &Matrix) -> Going {
        self.aligned(warp, group, "stmatrix")?;
        let at = self.addresses(warp, matrix.at);
        let rows = matrix.registers.len() as u32 * 8;
        let mask = if rows == 32 { !0 } else { (1 << rows) - 1 };
        self.aligned_to(warp, group, mask, &at, 16)?;
        let pc = self.pc(group.pc);
        let access = Access { shared: true, write: true, constant: false, bytes: 16 };
        self.host.access(warp.number, mask, &at, access, pc)?;
        let mut registers: [Words; 4] = [[0; 32]; 4];
        for (value, r) in registers.iter_mut().zip(&matrix.registers) {
            *value = *warp.word(*r);
        }
        let stored = tensor::stmatrix(&registers, matrix.registers.len(), matrix.transposed);
        for lane in lanes(mask) {
            let place = self.shared_at(at[lane as usize]).cast::<[u8; 16]>();
            // SAFETY: the host has checked these 16 bytes.
            unsafe { place.write_unaligned(stored[lane as usize]) };
        }
        Ok(())
    }

    // ---- cp.async: it lands as late as it may

    pub(crate) fn copy_async(&mut self, warp: &mut Warp, group: &Group, copy: &CopyAsync) -> Going {
        let to = self.addresses(warp, copy.to);
        let mut from = self.addresses(warp, copy.from);
        let read = match copy.read {
            Some(read) => *warp.word(read),
            None => [copy.bytes; 32],
        };
        let mask = warp.active;
        if let Some(lane) = lanes(mask).find(|lane| read[*lane as usize] > copy.bytes) {
            let read = read[lane as usize];
            self.fault(
                warp,
                group.pc,
                format_args!("cp.async reads {read} of {} bytes", copy.bytes),
            );
            return Err(Ended);
        }
        self.aligned_to(warp, group, mask, &to, copy.bytes)?;
        let reading = lanes(mask)
            .filter(|lane| read[*lane as usize] > 0)
            .fold(0, |all, lane| all | 1 << lane);
        self.aligned_to(warp, group, reading, &from, copy.bytes)?;
        for lane in lanes(!reading) {
            from[lane as usize] = 0;
        }
        let pc = self.pc(group.pc);
        self.host.copy_issued(warp.number, mask, &to, copy.bytes, pc)?;
        // It may be read at once, before the kernel before is done.
        for lane in lanes(reading & !warp.waited) {
            let bytes = read[lane as usize];
            let access = Access { shared: false, write: false, constant: false, bytes };
            self.host.check(warp.thread(lane), from[lane as usize], access, pc)?;
        }
        let number = warp.copies_so_far;
        warp.copies_so_far += 1;
        let (bytes, group) = (copy.bytes, warp.copy_group);
        warp.copies.push_back(Copies { mask, to, from, bytes, read, group, pc, number });
        Ok(())
    }

    /// Of lanes: all copies of groups but the `left` youngest; those of no group too where `open`.
    pub(crate) fn land_copies(
        &mut self,
        warp: &mut Warp,
        mask: u32,
        left: u32,
        open: bool,
    ) -> Going {
        let newest = warp.copy_group;
        let lands = move |copies: &Copies| {
            lanes(copies.mask & mask).fold(0, |all, lane| {
                let i = lane as usize;
                let is_due = open || copies.group[i] + left < newest[i];
                all | u32::from(is_due) << lane
            })
        };
        self.land_where(warp, lands)
    }

    fn land_where(&mut self, warp: &mut Warp, lands: impl Fn(&Copies) -> u32) -> Going {
        let mut kept = std::collections::VecDeque::with_capacity(warp.copies.len());
        while let Some(mut copies) = warp.copies.pop_front() {
            let due = lands(&copies);
            if due != 0 {
                self.land(warp, &copies, due)?;
                copies.mask &= !due;
            }
            if copies.mask != 0 {
                kept.push_back(copies);
            }
        }
        warp.copies = kept;
        self.arrive_for_copies(warp)
    }

    fn land(&mut self, warp: &Warp, copies: &Copies, mask: u32) -> Going {
        let (number, mut own) = (warp.number, mask);
        let mut size = CopyBytes { written: copies.bytes, read: &copies.read, seen_in: None };
        // Written when their arrival was asked for: those who wait for it know no more of the thread.
        for arrival in warp.arrivals.iter().filter(|arrival| copies.number < arrival.before) {
            let lane = 1 << arrival.lane;
            if own & lane != 0 {
                own &= !lane;
                size.seen_in = Some(arrival.clock);
                self.host.copy_landed(number, lane, &copies.to, &copies.from, size, copies.pc)?;
            }
        }
        if own != 0 {
            size.seen_in = None;
            self.host.copy_landed(number, own, &copies.to, &copies.from, size, copies.pc)?;
        }
        for lane in lanes(mask) {
            let i = lane as usize;
            let (read, all) = (copies.read[i] as usize, copies.bytes as usize);
            let to = self.shared_at(copies.to[i]);
            // SAFETY: the host has checked what is read, and, when the copy was asked for, what is
            // written; they do not overlap, as one is device memory and the other the block's own.
            unsafe {
                if read > 0 {
                    std::ptr::copy_nonoverlapping(copies.from[i] as *const u8, to, read);
                }
                std::ptr::write_bytes(to.add(read), 0, all - read);
            }
        }
        Ok(())
    }

    /// At an mbarrier, when the copies before have landed.
    pub(crate) fn copy_arrive(
        &mut self,
        warp: &mut Warp,
        group: &Group,
        at: Address,
        noinc: bool,
    ) -> Going {
        let at = self.addresses(warp, at);
        let pc = self.pc(group.pc);
        for lane in lanes(warp.active) {
            let bar = self.mbarrier_at(warp, group, at[lane as usize], lane)?;
            bar.pending += i64::from(!noinc);
            // It tells what the thread has done by now, and not what it does until the copies land.
            let clock = self.spare_clocks.pop().unwrap_or_else(|| self.new_clocks(1));
            self.host.release(clock, warp.number, 1 << lane);
            let (mbarrier, before) = (at[lane as usize] as u32, warp.copies_so_far);
            warp.arrivals.push_back(CopyArrival { lane, mbarrier, before, clock, pc });
        }
        self.arrive_for_copies(warp)
    }

    fn arrive_for_copies(&mut self, warp: &mut Warp) -> Going {
        while let Some(arrival) = warp.arrivals.front().copied() {
            let is_open = |copies: &Copies| {
                copies.number < arrival.before && copies.mask >> arrival.lane & 1 == 1
            };
            if warp.copies.iter().any(is_open) {
                return Ok(());
            }
            warp.arrivals.pop_front();
            self.arrive(arrival.mbarrier, 1, Arriver::Earlier(arrival.clock), arrival.pc)?;
            self.spare_clocks.push(arrival.clock);
        }
        Ok(())
    }

    /// When nothing else can happen, copies with an arrival land. Whether there were any.
    pub(crate) fn land_for_an_arrival(&mut self) -> Going<bool> {
        let Some(number) = self.warps.iter().position(|warp| !warp.arrivals.is_empty()) else {
            return Ok(false);
        };
        let mut warp = std::mem::take(&mut self.warps[number]);
        let before = warp.arrivals.front().map_or(0, |arrival| arrival.before);
        let landed = self
            .land_where(&mut warp, |copies| if copies.number < before { copies.mask } else { 0 });
        self.warps[number] = warp;
        landed.map(|()| true)
    }
}

/// The sign continued, as far as the register goes.
fn extend(value: u64, bytes: u32, register_bytes: u32) -> u64 {
    let signed = (value as i64) << (64 - 8 * bytes) >> (64 - 8 * bytes);
    signed as u64 & u64::MAX >> (64 - 8 * register_bytes)
}

fn change(arithmetic: Arithmetic, before: u32, x: u32, y: u32) -> u32 {
    match arithmetic {
        Arithmetic::Add => before.wrapping_add(x),
        Arithmetic::AddFloat => (f32::from_bits(before) + f32::from_bits(x)).to_bits(),
        Arithmetic::Min => before.min(x),
        Arithmetic::Max => before.max(x),
        Arithmetic::MinSigned => (before as i32).min(x as i32) as u32,
        Arithmetic::MaxSigned => (before as i32).max(x as i32) as u32,
        Arithmetic::And => before & x,
        Arithmetic::Or => before | x,
        Arithmetic::Xor => before ^ x,
        Arithmetic::Exchange => x,
        Arithmetic::Compare => {
            if before == x {
                y
            } else {
                before
            }
        }
    }
}
