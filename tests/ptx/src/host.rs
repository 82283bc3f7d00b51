//! What the executor asks of the machine around it: the emulator, whose shadow memory checks every
//! access; in this crate's tests, plain memory.

use std::fmt;

use crate::boxes::Map;

/// An address of one lane each, of those that a mask names.
pub(crate) type Addresses = [u64; 32];

/// How memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) shared: bool,
    pub(crate) write: bool,
    /// By the cache that is not coherent: `ld.global.nc`.
    pub(crate) constant: bool,
    pub(crate) bytes: u32,
}

/// The kinds of reports, as the emulator counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Race = 1,
    Uninitialised = 2,
    Fault = 4,
}

/// The launch ends here; a report says why.
#[derive(Debug)]
pub(crate) struct Ended;

/// What goes on, unless the launch ends.
pub(crate) type Going<T = ()> = Result<T, Ended>;

/// Places are numbers of instructions (`pc`), threads and asynchronous operations those of the block.
/// Clocks that many add to and take from are numbered by the caller.
pub(crate) trait Host {
    /// An instruction's accesses of device or shared memory, by the lanes of `mask`.
    fn access(&mut self, warp: u32, mask: u32, at: &Addresses, access: Access, pc: u32) -> Going;
    /// One access, by a thread or an asynchronous operation.
    fn check(&mut self, id: u32, at: u64, access: Access, pc: u32) -> Going;
    /// Of 4 bytes; the arithmetic is the caller's.
    fn atomic(&mut self, thread: u32, at: u64, shared: bool, atomic: Atomic, pc: u32) -> Going;
    /// `cp.async` of lanes is asked for: their bytes of shared memory are not to be touched until it has
    /// landed. `from` is null where nothing is read.
    fn copy_issued(&mut self, warp: u32, mask: u32, to: &Addresses, bytes: u32, pc: u32) -> Going;
    fn copy_landed(
        &mut self,
        warp: u32,
        mask: u32,
        to: &Addresses,
        from: &Addresses,
        copied: CopyBytes,
        pc: u32,
    ) -> Going;
    /// A range of shared memory is written by an operation that is under way, or is so no more.
    fn pending(&mut self, id: u32, at: u32, bytes: u32, on: bool, pc: u32);
    fn mbarrier(&mut self, at: u32, live: bool);
    /// An mbarrier is used by a thread or an asynchronous operation, which has to see that it was made:
    /// the engine by a fence of proxies, unless `fenced`.
    fn mbarrier_used(&mut self, id: u32, at: u32, fenced: bool, pc: u32);
    fn release(&mut self, clock: u32, warp: u32, mask: u32);
    fn acquire(&mut self, clock: u32, warp: u32, mask: u32);
    fn release_id(&mut self, clock: u32, id: u32);
    fn move_clock(&mut self, from: u32, to: u32);
    fn clear_clock(&mut self, clock: u32);
    fn sync_warp(&mut self, warp: u32, mask: u32);
    fn new_agent(&mut self, thread: u32) -> u32;
    fn fence_proxy(&mut self, warp: u32, mask: u32);
    fn prior_done(&mut self) -> bool;
    fn has_waited(&mut self, warp: u32, mask: u32);
    fn let_next(&mut self);
    fn report(&mut self, kind: Kind, thread: u32, pc: u32, text: fmt::Arguments<'_>);
    fn tensor_map(&mut self, at: u64) -> Option<Map>;
}

/// An atomic operation's order and scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Atomic {
    pub(crate) acquire: bool,
    pub(crate) release: bool,
    /// Of the device, or of the block alone.
    pub(crate) device: bool,
}

/// Of a `cp.async`: bytes written, and of them read, lane by lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyBytes<'a> {
    pub(crate) written: u32,
    pub(crate) read: &'a [u32; 32],
    /// The clock by which others see it, which the thread has released to; else what it does next.
    pub(crate) seen_in: Option<u32>,
}
