//! Instructions that do more than compute: memory, control flow, what lanes do together, and what is
//! asynchronous. Their text becomes operations in `lower.rs`; what they do is in the modules that run them.

mod lower;

pub(crate) use lower::lower;

use crate::lanes::{Doubles, Words};
use crate::program::{Any, P, R32, R64};
use crate::tensor::Element;

/// An operation, its results first.
pub(crate) enum Op {
    One(fn(&Words) -> Words, R32, R32),
    Two(fn(&Words, &Words) -> Words, R32, [R32; 2]),
    Three(fn(&Words, &Words, &Words) -> Words, R32, [R32; 3]),
    OneDouble(fn(&Doubles) -> Doubles, R64, R64),
    TwoDouble(fn(&Doubles, &Doubles) -> Doubles, R64, [R64; 2]),
    ThreeDouble(fn(&Doubles, &Doubles, &Doubles) -> Doubles, R64, [R64; 3]),
    DoubleBy(fn(&Doubles, &Words) -> Doubles, R64, R64, R32),
    Widen(fn(&Words) -> Doubles, R64, R32),
    WidenTwo(fn(&Words, &Words) -> Doubles, R64, [R32; 2]),
    WidenThree(fn(&Words, &Words, &Doubles) -> Doubles, R64, [R32; 2], R64),
    Narrow(fn(&Doubles) -> Words, R32, R64),
    Compare(fn(&Words, &Words) -> u32, P, [R32; 2]),
    CompareDouble(fn(&Doubles, &Doubles) -> u32, P, [R64; 2]),
    Select(R32, [R32; 2], P),
    SelectDouble(R64, [R64; 2], P),
    PredicateOne(fn(u32) -> u32, P, P),
    PredicateTwo(fn(u32, u32) -> u32, P, [P; 2]),
    /// Bits of a put into b, from a place on, so many.
    Insert(R32, [R32; 4]),
    InsertDouble(R64, [R64; 2], [R32; 2]),
    /// Halves into a whole, the lower one first.
    Join(R32, [R32; 2]),
    JoinDouble(R64, [R32; 2]),
    Split([Any; 2], R32),
    SplitDouble([Any; 2], R64),
    Clock(Any),
    ParamAddress(R64, R64),
    Branch(u32),
    Return,
    Trap,
    LoadParam(Box<Load>),
    Load(Box<Load>),
    Store(Box<Store>),
    Atomic(Box<AtomicOp>),
    BarrierSync(R32, Option<R32>),
    BarrierArrive(R32, R32),
    BarrierWarp(R32),
    Shuffle(Box<Shuffle>),
    Vote(Box<Vote>),
    Elect(Any, P, R32),
    Ldmatrix(Box<Matrix>),
    Stmatrix(Box<Matrix>),
    Movmatrix(R32, R32),
    Mma(Box<Mma>),
    CopyAsync(Box<CopyAsync>),
    CopyCommit,
    /// Until at most so many groups are under way; those of before a number, or all.
    CopyWait(u32),
    CopyWaitAll,
    /// At an mbarrier, once the thread's copies so far have landed; whether the arrival is one of those
    /// that it counts.
    CopyArrive(Address, bool),
    Mbarrier(Box<Mbarrier>),
    FenceProxy,
    /// `fence.mbarrier_init`: the engine sees the mbarriers that the thread has made.
    FenceInit,
    Bulk(Box<Bulk>),
    BulkCommit,
    /// So many groups may be left; whether only reads are waited for (`.read`).
    BulkWait(u32, bool),
    Wgmma(Box<Wgmma>),
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait(u32),
    SetMaxRegisters(u32, bool),
    GridWait,
    GridLaunch,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Base {
    Word(R32),
    Double(R64),
    Fixed,
}

/// A register or nothing, and what is added.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Address {
    pub(crate) base: Base,
    pub(crate) offset: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Shared,
    Local,
    /// Told by the address.
    Generic,
}

/// Bytes of an element, and whether its sign is continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) bytes: u32,
    pub(crate) signed: bool,
}

pub(crate) struct Load {
    pub(crate) to: Vec<Any>,
    pub(crate) at: Address,
    pub(crate) kind: Kind,
    /// As wide as its registers are: what is above stays zero where a sign is continued.
    pub(crate) register_bytes: u32,
    pub(crate) space: Space,
    pub(crate) constant: bool,
}

pub(crate) struct Store {
    pub(crate) at: Address,
    pub(crate) from: Vec<Any>,
    pub(crate) kind: Kind,
    pub(crate) space: Space,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    Add,
    Min,
    Max,
    MinSigned,
    MaxSigned,
    And,
    Or,
    Xor,
    Exchange,
    Compare,
    AddFloat,
}

pub(crate) struct AtomicOp {
    pub(crate) to: Any,
    pub(crate) at: Address,
    pub(crate) operands: Vec<R32>,
    pub(crate) arithmetic: Arithmetic,
    pub(crate) shared: bool,
    pub(crate) acquire: bool,
    pub(crate) release: bool,
    pub(crate) device: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShuffleMode {
    Index,
    Butterfly,
    Up,
    Down,
}

pub(crate) struct Shuffle {
    pub(crate) mode: ShuffleMode,
    pub(crate) to: R32,
    pub(crate) inside: Option<P>,
    /// The value, the lane, the clamp, the mask of members.
    pub(crate) from: [R32; 4],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VoteMode {
    Ballot(R32),
    Any(P),
    All(P),
    Uniform(P),
}

pub(crate) struct Vote {
    pub(crate) mode: VoteMode,
    pub(crate) predicate: P,
    pub(crate) members: R32,
}

/// `ldmatrix` and `stmatrix`.
pub(crate) struct Matrix {
    pub(crate) registers: Vec<R32>,
    pub(crate) at: Address,
    pub(crate) transposed: bool,
}

pub(crate) struct Mma {
    pub(crate) d: [R32; 4],
    pub(crate) a: Vec<R32>,
    pub(crate) b: Vec<R32>,
    pub(crate) c: [R32; 4],
    pub(crate) k: usize,
    pub(crate) elements: [Element; 2],
}

pub(crate) struct CopyAsync {
    pub(crate) to: Address,
    pub(crate) from: Address,
    pub(crate) bytes: u32,
    pub(crate) read: Option<R32>,
}

pub(crate) enum MbarrierOp {
    Init(R32),
    Invalidate,
    /// The state, the count, bytes to expect; `release` as is the default.
    Arrive {
        state: Any,
        count: Option<R32>,
        expect: Option<R32>,
        drop: bool,
    },
    Expect(R32),
    /// The result; a parity or a state; whether it may suspend.
    Test {
        done: P,
        parity: Option<R32>,
        state: Option<R64>,
        suspends: bool,
    },
}

pub(crate) struct Mbarrier {
    pub(crate) at: Address,
    pub(crate) op: MbarrierOp,
}

/// Bulk copies: with a tensor map, or of so many bytes.
pub(crate) struct Bulk {
    pub(crate) shared: Address,
    pub(crate) global: Address,
    pub(crate) what: BulkSize,
    /// To global memory; else from it, and the mbarrier counts bytes.
    pub(crate) mbarrier: Option<Address>,
}

pub(crate) enum BulkSize {
    Bytes(R32),
    Box(Vec<R32>),
}

pub(crate) enum WgmmaA {
    Registers([R32; 4]),
    Descriptor(R64),
}

pub(crate) struct Wgmma {
    pub(crate) d: Vec<R32>,
    pub(crate) a: WgmmaA,
    pub(crate) b: R64,
    /// Added to what was there, where it holds.
    pub(crate) scale_d: P,
    pub(crate) negated: [bool; 2],
    pub(crate) transposed: [bool; 2],
    pub(crate) elements: [Element; 2],
    pub(crate) n: usize,
}
