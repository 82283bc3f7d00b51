//! From text to operations.

use super::{
    Address, Arithmetic, AtomicOp, Base, Bulk, BulkSize, CopyAsync, Kind, Load, Matrix, Mbarrier,
    MbarrierOp, Mma, Op, Shuffle, ShuffleMode, Space, Store, Vote, VoteMode, Wgmma, WgmmaA,
};
use crate::parse::{Operand, Result, Statement, size_of_type};
use crate::program::{Any, Lowering, R32};
use crate::tensor::Element;

type Maybe<T = Op> = Result<Option<T>>;

/// The operation of a statement; none where it only computes.
pub(crate) fn lower<'e, 't>(l: &mut Lowering<'e, 't>, statement: &'e Statement<'t>) -> Maybe {
    let words: Vec<&str> = statement.opcode.split('.').collect();
    let found = match words[0] {
        "mov" => return moves(l, statement, &words),
        "bfi" => return insert(l, statement, &words),
        "cvta" if words[1] == "param" => {
            let [d, a] = two(l, statement)?;
            Op::ParamAddress(l.double(d)?, l.double(a)?)
        }
        "bra" => Op::Branch(l.label(one(l, statement)?)?),
        "ret" | "exit" => Op::Return,
        "trap" => Op::Trap,
        "ld" => load(l, statement, &words)?,
        "st" => store(l, statement, &words)?,
        "atom" | "red" => atomic(l, statement, &words)?,
        "bar" | "barrier" => barrier(l, statement, &words)?,
        "shfl" => shuffle(l, statement, &words)?,
        "vote" => vote(l, statement, &words)?,
        "elect" => elect(l, statement)?,
        "ldmatrix" | "stmatrix" => matrix(l, statement, &words)?,
        "movmatrix" => {
            let [d, a] = two(l, statement)?;
            Op::Movmatrix(l.word(d)?, l.word(a)?)
        }
        "mma" => mma(l, statement, &words)?,
        "cp" => copies(l, statement, &words)?,
        "mbarrier" => mbarrier(l, statement, &words)?,
        "fence" => match &words[1..] {
            ["proxy", "async"] | ["proxy", "async", "shared::cta"] => Op::FenceProxy,
            ["mbarrier_init", "release", "cluster"] => Op::FenceInit,
            _ => return Ok(None),
        },
        "wgmma" => wgmma(l, statement, &words)?,
        "setmaxnreg" => {
            let count = l.integer(one(l, statement)?)? as u32;
            Op::SetMaxRegisters(count, words[1] == "inc")
        }
        "griddepcontrol" if words[1] == "wait" => Op::GridWait,
        "griddepcontrol" => Op::GridLaunch,
        _ => return Ok(None),
    };
    Ok(Some(found))
}

fn operand<'e, 't>(
    l: &Lowering<'_, '_>,
    s: &'e Statement<'t>,
    at: usize,
) -> Result<&'e Operand<'t>> {
    match s.operands.get(at) {
        Some(operand) => Ok(operand),
        None => l.error(format!("{} has {} operands", s.opcode, s.operands.len())),
    }
}
fn one<'e, 't>(l: &Lowering<'_, '_>, s: &'e Statement<'t>) -> Result<&'e Operand<'t>> {
    operand(l, s, 0)
}
fn two<'e, 't>(l: &Lowering<'_, '_>, s: &'e Statement<'t>) -> Result<[&'e Operand<'t>; 2]> {
    Ok([operand(l, s, 0)?, operand(l, s, 1)?])
}

/// A modifier that is not known is an error: it would mean something else.
fn only(l: &Lowering<'_, '_>, s: &Statement<'_>, words: &[&str], known: &[&str]) -> Result<()> {
    match words.iter().find(|word| !known.contains(word)) {
        Some(word) => l.error(format!("the executor has no {} with .{word}", s.opcode)),
        None => Ok(()),
    }
}

fn vector<'e, 't>(operand: &'e Operand<'t>) -> &'e [Operand<'t>] {
    match operand {
        Operand::Vector(parts) => parts,
        other => std::slice::from_ref(other),
    }
}

fn registers<'e, 't>(l: &mut Lowering<'e, 't>, operand: &'e Operand<'t>) -> Result<Vec<R32>> {
    vector(operand).iter().map(|part| l.word(part)).collect()
}

fn four<'e, 't>(l: &mut Lowering<'e, 't>, operand: &'e Operand<'t>) -> Result<[R32; 4]> {
    match registers(l, operand)?.try_into() {
        Ok(four) => Ok(four),
        Err(_) => l.error("not four registers"),
    }
}

fn address<'e, 't>(l: &mut Lowering<'e, 't>, operand: &'e Operand<'t>) -> Result<Address> {
    let Operand::Address(base, offset) = operand else {
        return l.error(format!("{operand:?} is no address"));
    };
    let offset = *offset;
    Ok(match &**base {
        register @ Operand::Register(_) => match l.any(register)? {
            Any::Word(at) => Address { base: Base::Word(at), offset },
            Any::Double(at) => Address { base: Base::Double(at), offset },
            Any::Nothing => return l.error("an address of nothing"),
        },
        Operand::Symbol(name) => match l.symbol(name) {
            Some(at) => Address { base: Base::Fixed, offset: at as i64 + offset },
            None => return l.error(format!("{name} is declared nowhere")),
        },
        other => Address { base: Base::Fixed, offset: l.integer(other)? as i64 + offset },
    })
}

/// `mov` of parts, of clocks; of predicates and whole registers it only computes.
fn moves<'e, 't>(l: &mut Lowering<'e, 't>, s: &'e Statement<'t>, words: &[&str]) -> Maybe {
    let [to, from] = two(l, s)?;
    if let Operand::Special("%clock" | "%clock64" | "%clock_hi" | "%globaltimer") = from {
        return Ok(Some(Op::Clock(l.any(to)?)));
    }
    let is_double = words.last().and_then(|kind| size_of_type(kind)) == Some(8);
    Ok(Some(match (to, from) {
        (to, Operand::Vector(parts)) if parts.len() == 2 => {
            let parts = [l.word(&parts[0])?, l.word(&parts[1])?];
            if is_double {
                Op::JoinDouble(l.double(to)?, parts)
            } else {
                Op::Join(l.word(to)?, parts)
            }
        }
        (Operand::Vector(parts), from) if parts.len() == 2 => {
            let parts = [l.any(&parts[0])?, l.any(&parts[1])?];
            if is_double {
                Op::SplitDouble(parts, l.double(from)?)
            } else {
                Op::Split(parts, l.word(from)?)
            }
        }
        (Operand::Vector(_), _) | (_, Operand::Vector(_)) => {
            return l.error(format!("{} of other than two parts", s.opcode));
        }
        _ => return Ok(None),
    }))
}

fn insert<'e, 't>(l: &mut Lowering<'e, 't>, s: &'e Statement<'t>, words: &[&str]) -> Maybe {
    let part = |i| operand(l, s, i);
    let [d, a, b, at, count] = [part(0)?, part(1)?, part(2)?, part(3)?, part(4)?];
    let places = [l.word(at)?, l.word(count)?];
    Ok(Some(match words.last() {
        Some(&"b32") => Op::Insert(l.word(d)?, [l.word(a)?, l.word(b)?, places[0], places[1]]),
        Some(&"b64") => Op::InsertDouble(l.double(d)?, [l.double(a)?, l.double(b)?], places),
        _ => return Ok(None),
    }))
}

/// What the modifiers of loads and stores say.
struct Modifiers {
    space: Space,
    is_param: bool,
    constant: bool,
    count: usize,
    kind: Kind,
}

fn modifiers(l: &Lowering<'_, '_>, s: &Statement<'_>, words: &[&str]) -> Result<Modifiers> {
    let kind = words[words.len() - 1];
    let Some(bytes) = size_of_type(kind) else {
        return l.error(format!("{} of no type", s.opcode));
    };
    let mut m = Modifiers {
        space: Space::Generic,
        is_param: false,
        constant: false,
        count: 1,
        kind: Kind { bytes, signed: kind.starts_with('s') },
    };
    for word in &words[1..words.len() - 1] {
        match *word {
            "global" => m.space = Space::Global,
            "shared" | "shared::cta" => m.space = Space::Shared,
            "local" => m.space = Space::Local,
            "param" => m.is_param = true,
            "nc" => m.constant = true,
            "v2" => m.count = 2,
            "v4" => m.count = 4,
            // Hints to caches, and what is said of it anyway.
            "weak" | "ca" | "cg" | "cs" | "lu" | "wb" | "wt" | "L1::no_allocate"
            | "L1::evict_first" | "L1::evict_last" | "L2::64B" | "L2::128B" | "L2::256B" => (),
            word => return l.error(format!("the executor has no {} with .{word}", s.opcode)),
        }
    }
    Ok(m)
}

fn load<'e, 't>(l: &mut Lowering<'e, 't>, s: &'e Statement<'t>, words: &[&str]) -> Result<Op> {
    let m = modifiers(l, s, words)?;
    let [to, at] = two(l, s)?;
    let to: Vec<Any> = vector(to).iter().map(|part| l.any(part)).collect::<Result<_>>()?;
    if to.len() != m.count {
        return l.error(format!("{} to {} registers", s.opcode, to.len()));
    }
    let load = Box::new(Load {
        to,
        at: address(l, at)?,
        kind: m.kind,
        space: m.space,
        constant: m.constant,
    });
    Ok(if m.is_param { Op::LoadParam(load) } else { Op::Load(load) })
}

fn store<'e, 't>(l: &mut Lowering<'e, 't>, s: &'e Statement<'t>, words: &[&str]) -> Result<Op> {
    let m = modifiers(l, s, words)?;
    let [at, from] = two(l, s)?;
    let from: Vec<Any> = vector(from).iter().map(|part| l.any(part)).collect::<Result<_>>()?;
    if from.len() != m.count || m.is_param {
        return l.error(format!("{} of {} registers", s.opcode, from.len()));
    }
    Ok(Op::Store(Box::new(Store { at: address(l, at)?, from, kind: m.kind, space: m.space })))
}

fn atomic<'e, 't>(l: &mut Lowering<'e, 't>, s: &'e Statement<'t>, words: &[&str]) -> Result<Op> {
    let has_result = words[0] == "atom";
    let (mut acquire, mut release, mut device, mut shared) = (false, false, true, false);
    let mut operation = "";
    for word in &words[1..words.len() - 1] {
        match *word {
            "relaxed" => (),
            "acquire" => acquire = true,
            "release" => release = true,
            "acq_rel" => (acquire, release) = (true, true),
            "cta" => device = false,
            "gpu" | "sys" => device = true,
            "global" => shared = false,
            "shared" | "shared::cta" => shared = true,
            other => operation = other,
        }
    }
    let arithmetic = match (operation, words[words.len() - 1]) {
        ("add", "u32" | "s32") => Arithmetic::Add,
        ("add", "f32") => Arithmetic::AddFloat,
        ("min", "u32") => Arithmetic::Min,
        ("max", "u32") => Arithmetic::Max,
        ("min", "s32") => Arithmetic::MinSigned,
        ("max", "s32") => Arithmetic::MaxSigned,
        ("and", "b32") => Arithmetic::And,
        ("or", "b32") => Arithmetic::Or,
        ("xor", "b32") => Arithmetic::Xor,
        ("exch", "b32") => Arithmetic::Exchange,
        ("cas", "b32") => Arithmetic::Compare,
        _ => return l.error(format!("the executor has no opcode {}", s.opcode)),
    };
    let first = usize::from(has_result);
    let to = if has_result { l.any(operand(l, s, 0)?)? } else { Any::Nothing };
    let at = address(l, operand(l, s, first)?)?;
    let operands = s.operands[first + 1..].iter().map(|o| l.word(o)).collect::<Result<_>>()?;
    Ok(Op::Atomic(Box::new(AtomicOp {
        to,
        at,
        operands,
        arithmetic,
        shared,
        acquire,
        release,
        device,
    })))
}

fn barrier<'e, 't>(l: &mut Lowering<'e, 't>, s: &'e Statement<'t>, words: &[&str]) -> Result<Op> {
    let first = l.word(one(l, s)?)?;
    match &words[1..] {
        ["warp", "sync"] => Ok(Op::BarrierWarp(first)),
        ["sync"] | ["sync", "aligned"] | ["cta", "sync"] | ["cta", "sync", "aligned"] => {
            let count = s.operands.get(1).map(|count| l.word(count)).transpose()?;
            Ok(Op::BarrierSync(first, count))
        }
        ["arrive"] | ["arrive", "aligned"] | ["cta", "arrive"] | ["cta", "arrive", "aligned"] => {
            Ok(Op::BarrierArrive(first, l.word(operand(l, s, 1)?)?))
        }
        _ => l.error(format!("the executor has no opcode {}", s.opcode)),
    }
}

fn shuffle<'e, 't>(l: &mut Lowering<'e, 't>, s: &'e Statement<'t>, words: &[&str]) -> Result<Op> {
    let mode = match &words[1..] {
        ["sync", "idx", "b32"] => ShuffleMode::Index,
        ["sync", "bfly", "b32"] => ShuffleMode::Butterfly,
        ["sync", "up", "b32"] => ShuffleMode::Up,
        ["sync", "down", "b32"] => ShuffleMode::Down,
        _ => return l.error(format!("the executor has no opcode {}", s.opcode)),
    };
    let (to, inside) = match one(l, s)? {
        Operand::Pair(to, inside) => (l.word(to)?, Some(l.predicate(inside)?)),
        to => (l.word(to)?, None),
    };
    let from = |l: &mut Lowering<'e, 't>, i| operand(l, s, i).and_then(|o| l.word(o));
    let from = [from(l, 1)?, from(l, 2)?, from(l, 3)?, from(l, 4)?];
    Ok(Op::Shuffle(Box::new(Shuffle { mode, to, inside, from })))
}

fn vote<'e, 't>(l: &mut Lowering<'e, 't>, s: &'e Statement<'t>, words: &[&str]) -> Result<Op> {
    let [to, predicate] = two(l, s)?;
    let mode = match &words[1..] {
        ["sync", "ballot", "b32"] => VoteMode::Ballot(l.word(to)?),
        ["sync", "any", "pred"] => VoteMode::Any(l.predicate(to)?),
        ["sync", "all", "pred"] => VoteMode::All(l.predicate(to)?),
        ["sync", "uni", "pred"] => VoteMode::Uniform(l.predicate(to)?),
        _ => return l.error(format!("the executor has no opcode {}", s.opcode)),
    };
    let members = l.word(operand(l, s, 2)?)?;
    Ok(Op::Vote(Box::new(Vote { mode, predicate: l.predicate(predicate)?, members })))
}

fn elect<'e, 't>(l: &mut Lowering<'e, 't>, s: &'e Statement<'t>) -> Result<Op> {
    let [to, members] = two(l, s)?;
    let Operand::Pair(to, elected) = to else { return l.error("elect.sync without its predicate") };
    Ok(Op::Elect(l.any(to)?, l.predicate(elected)?, l.word(members)?))
}

fn matrix<'e, 't>(l: &mut Lowering<'e, 't>, s: &'e Statement<'t>, words: &[&str]) -> Result<Op> {
    only(
        l,
        s,
        &words[1..],
        &["sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta", "b16"],
    )?;
    let is_load = words[0] == "ldmatrix";
    let [a, b] = two(l, s)?;
    let (list, at) = if is_load { (a, b) } else { (b, a) };
    let registers = registers(l, list)?;
    let count = match words.iter().find_map(|word| word.strip_prefix('x')) {
        Some(count) => count.parse().unwrap_or(0),
        None => 0,
    };
    if registers.len() != count {
        return l.error(format!("{} of {} registers", s.opcode, registers.len()));
    }
    let matrix =
        Box::new(Matrix { registers, at: address(l, at)?, transposed: words.contains(&"trans") });
    Ok(if is_load { Op::Ldmatrix(matrix) } else { Op::Stmatrix(matrix) })
}

fn element(word: &str) -> Option<Element> {
    Some(match word {
        "f16" => Element::F16,
        "bf16" => Element::Bf16,
        "tf32" => Element::Tf32,
        "e4m3" => Element::E4m3,
        "e5m2" => Element::E5m2,
        _ => return None,
    })
}

fn mma<'e, 't>(l: &mut Lowering<'e, 't>, s: &'e Statement<'t>, words: &[&str]) -> Result<Op> {
    let unknown = format!("the executor has no opcode {}", s.opcode);
    let ["sync", "aligned", shape, "row", "col", "f32", a, b, "f32"] = &words[1..] else {
        return l.error(unknown);
    };
    let k = shape.strip_prefix("m16n8k").and_then(|k| k.parse().ok());
    let (Some(k), Some(a), Some(b)) = (k, element(a), element(b)) else { return l.error(unknown) };
    let (d, list_a) = (four(l, operand(l, s, 0)?)?, registers(l, operand(l, s, 1)?)?);
    let (list_b, c) = (registers(l, operand(l, s, 2)?)?, four(l, operand(l, s, 3)?)?);
    let bytes = match a {
        Element::Tf32 => 4,
        Element::F16 | Element::Bf16 => 2,
        Element::E4m3 | Element::E5m2 => 1,
    };
    if list_a.len() * 32 * 4 != 16 * k * bytes || list_b.len() * 32 * 4 != 8 * k * bytes {
        return l.error(format!("{} of {} and {} registers", s.opcode, list_a.len(), list_b.len()));
    }
    Ok(Op::Mma(Box::new(Mma { d, a: list_a, b: list_b, c, k, elements: [a, b] })))
}

fn copies<'e, 't>(l: &mut Lowering<'e, 't>, s: &'e Statement<'t>, words: &[&str]) -> Result<Op> {
    match &words[1..] {
        ["async", "commit_group"] => return Ok(Op::CopyCommit),
        ["async", "wait_group"] => return Ok(Op::CopyWait(l.integer(one(l, s)?)? as u32)),
        ["async", "wait_all"] => return Ok(Op::CopyWaitAll),
        ["async", "mbarrier", "arrive", rest @ ..] => {
            only(l, s, rest, &["noinc", "shared", "shared::cta", "b64"])?;
            return Ok(Op::CopyArrive(address(l, one(l, s)?)?, rest.contains(&"noinc")));
        }
        ["async", "bulk", "commit_group"] => return Ok(Op::BulkCommit),
        ["async", "bulk", "wait_group", rest @ ..] => {
            only(l, s, rest, &["read"])?;
            let left = l.integer(one(l, s)?)? as u32;
            return Ok(Op::BulkWait(left));
        }
        ["async", "bulk", rest @ ..] => return bulk(l, s, rest),
        _ => (),
    }
    let known =
        ["async", "ca", "cg", "shared", "shared::cta", "global", "L2::64B", "L2::128B", "L2::256B"];
    only(l, s, &words[1..], &known)?;
    let [to, from] = two(l, s)?;
    let bytes = l.integer(operand(l, s, 2)?)? as u32;
    let read = s.operands.get(3).map(|read| l.word(read)).transpose()?;
    if !matches!(bytes, 4 | 8 | 16) || (words.contains(&"cg") && bytes != 16) {
        return l.error(format!("{} of {bytes} bytes", s.opcode));
    }
    Ok(Op::CopyAsync(Box::new(CopyAsync {
        to: address(l, to)?,
        from: address(l, from)?,
        bytes,
        read,
    })))
}

fn bulk<'e, 't>(l: &mut Lowering<'e, 't>, s: &'e Statement<'t>, words: &[&str]) -> Result<Op> {
    let known = [
        "tensor",
        "1d",
        "2d",
        "3d",
        "4d",
        "5d",
        "shared::cluster",
        "shared::cta",
        "global",
        "tile",
        "mbarrier::complete_tx::bytes",
        "bulk_group",
    ];
    only(l, s, words, &known)?;
    let is_tensor = words.contains(&"tensor");
    let is_store = words.contains(&"bulk_group");
    let (first, second) = (operand(l, s, 0)?, operand(l, s, 1)?);
    let (global, shared) = if is_store { (first, second) } else { (second, first) };
    let shared = address(l, shared)?;
    let (global, what) = match (is_tensor, global) {
        (true, Operand::Tensor(map, coordinates)) => {
            let coordinates = coordinates.iter().map(|c| l.word(c)).collect::<Result<Vec<_>>>()?;
            if !words.contains(&format!("{}d", coordinates.len()).as_str()) {
                return l.error(format!("{} with {} coordinates", s.opcode, coordinates.len()));
            }
            let map = Address { base: Base::Double(l.double(map)?), offset: 0 };
            (map, BulkSize::Box(coordinates))
        }
        (false, global) => (address(l, global)?, BulkSize::Bytes(l.word(operand(l, s, 2)?)?)),
        _ => return l.error(format!("{} without a tensor map", s.opcode)),
    };
    let mbarrier = match s.operands.last() {
        Some(last) if !is_store => Some(address(l, last)?),
        _ => None,
    };
    Ok(Op::Bulk(Box::new(Bulk { shared, global, what, mbarrier })))
}

fn mbarrier<'e, 't>(l: &mut Lowering<'e, 't>, s: &'e Statement<'t>, words: &[&str]) -> Result<Op> {
    let known = [
        "shared",
        "shared::cta",
        "b64",
        "release",
        "acquire",
        "cta",
        "expect_tx",
        "parity",
        "relaxed",
    ];
    only(l, s, &words[2..], &known)?;
    let has = |word| words.contains(&word);
    let (at, op) = match words[1] {
        "init" => (0, MbarrierOp::Init(l.word(operand(l, s, 1)?)?)),
        "inval" => (0, MbarrierOp::Invalidate),
        "expect_tx" => (0, MbarrierOp::Expect(l.word(operand(l, s, 1)?)?)),
        "arrive" | "arrive_drop" => {
            let state = l.any(operand(l, s, 0)?)?;
            let third = s.operands.get(2).map(|count| l.word(count)).transpose()?;
            let (count, expect) = if has("expect_tx") { (None, third) } else { (third, None) };
            (1, MbarrierOp::Arrive { state, count, expect, drop: words[1] == "arrive_drop" })
        }
        "try_wait" | "test_wait" => {
            let done = l.predicate(operand(l, s, 0)?)?;
            let phase = operand(l, s, 2)?;
            let parity = if has("parity") { Some(l.word(phase)?) } else { None };
            let state = if has("parity") { None } else { Some(l.double(phase)?) };
            (1, MbarrierOp::Test { done, parity, state, suspends: words[1] == "try_wait" })
        }
        _ => return l.error(format!("the executor has no opcode {}", s.opcode)),
    };
    Ok(Op::Mbarrier(Box::new(Mbarrier { at: address(l, operand(l, s, at)?)?, op })))
}

fn wgmma<'e, 't>(l: &mut Lowering<'e, 't>, s: &'e Statement<'t>, words: &[&str]) -> Result<Op> {
    let unknown = format!("the executor has no opcode {}", s.opcode);
    let (shape, a, b) = match &words[1..] {
        ["fence", "sync", "aligned"] => return Ok(Op::WgmmaFence),
        ["commit_group", "sync", "aligned"] => return Ok(Op::WgmmaCommit),
        ["wait_group", "sync", "aligned"] => {
            return Ok(Op::WgmmaWait(l.integer(one(l, s)?)? as u32));
        }
        ["mma_async", "sync", "aligned", shape, "f32", a, b] => (shape, element(a), element(b)),
        _ => return l.error(unknown),
    };
    let n =
        shape.strip_prefix("m64n").and_then(|rest| rest.split('k').next()?.parse::<usize>().ok());
    let (Some(n), Some(element_a), Some(element_b)) = (n, a, b) else { return l.error(unknown) };
    let d = registers(l, operand(l, s, 0)?)?;
    if d.len() * 2 != n {
        return l.error(format!("{} of {} registers", s.opcode, d.len()));
    }
    let a = match operand(l, s, 1)? {
        list @ Operand::Vector(_) => WgmmaA::Registers(four(l, list)?),
        descriptor => WgmmaA::Descriptor(l.double(descriptor)?),
    };
    let (b, scale_d) = (l.double(operand(l, s, 2)?)?, l.predicate(operand(l, s, 3)?)?);
    let flag = |l: &Lowering<'_, '_>, i: usize| -> Result<u64> {
        s.operands.get(i).map_or(Ok(0), |flag| l.integer(flag))
    };
    let negated = [flag(l, 4)? as i32 == -1, flag(l, 5)? as i32 == -1];
    let transposed = match a {
        WgmmaA::Registers(_) => [false, flag(l, 6)? != 0],
        WgmmaA::Descriptor(_) => [flag(l, 6)? != 0, flag(l, 7)? != 0],
    };
    let elements = [element_a, element_b];
    Ok(Op::Wgmma(Box::new(Wgmma { d, a, b, scale_d, negated, transposed, elements, n })))
}
