//! From text to operations.

mod asynchronous;

use super::{
    Address, Arithmetic, AtomicOp, Base, Kind, Load, Matrix, Mma, Op, Shuffle, ShuffleMode, Space,
    Store, Vote, VoteMode,
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
        "cvta" if words.get(1) == Some(&"param") => {
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
        "cp" => asynchronous::copies(l, statement, &words)?,
        "mbarrier" => asynchronous::mbarrier(l, statement, &words)?,
        "fence" => match &words[1..] {
            ["proxy", "async"] | ["proxy", "async", "shared::cta"] => Op::FenceProxy,
            ["mbarrier_init", "release", "cluster"] => Op::FenceInit,
            _ => return Ok(None),
        },
        "wgmma" => asynchronous::wgmma(l, statement, &words)?,
        "setmaxnreg" => {
            let count = l.integer(one(l, statement)?)? as u32;
            match &words[1..] {
                ["inc", "sync", "aligned", "u32"] => Op::SetMaxRegisters(count, true),
                ["dec", "sync", "aligned", "u32"] => Op::SetMaxRegisters(count, false),
                _ => return Ok(None),
            }
        }
        "griddepcontrol" => match &words[1..] {
            ["wait"] => Op::GridWait,
            ["launch_dependents"] => Op::GridLaunch,
            _ => return Ok(None),
        },
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
    let bytes = words.last().and_then(|kind| size_of_type(kind));
    let is_double = bytes == Some(8);
    let has_parts = matches!(to, Operand::Vector(_)) || matches!(from, Operand::Vector(_));
    if has_parts && !matches!(bytes, Some(4 | 8)) {
        return l.error(format!("the executor has no {} of parts", s.opcode));
    }
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
    let register_bytes = vector(to).iter().find_map(|part| l.bytes(part)).unwrap_or(8);
    let to: Vec<Any> = vector(to).iter().map(|part| l.any(part)).collect::<Result<_>>()?;
    if to.len() != m.count {
        return l.error(format!("{} to {} registers", s.opcode, to.len()));
    }
    let load = Box::new(Load {
        to,
        at: address(l, at)?,
        kind: m.kind,
        register_bytes,
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
    // In this order, each of them or none.
    let mut rest = &words[1..];
    let mut next = |known: &[&'static str]| {
        let word = known.iter().copied().find(|word| rest.first() == Some(word));
        rest = &rest[usize::from(word.is_some())..];
        word
    };
    let order = next(&["relaxed", "acquire", "release", "acq_rel"]);
    let (acquire, release) = match order {
        Some("acquire") => (true, false),
        Some("release") => (false, true),
        Some("acq_rel") => (true, true),
        _ => (false, false),
    };
    let device = next(&["cta", "gpu", "sys"]) != Some("cta");
    let shared = match next(&["global", "shared", "shared::cta"]) {
        Some(space) => space != "global",
        None => return l.error(format!("the executor has no opcode {}", s.opcode)),
    };
    let &[operation, kind] = rest else {
        return l.error(format!("the executor has no opcode {}", s.opcode));
    };
    let arithmetic = match (operation, kind) {
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
    let operands: Vec<_> =
        s.operands[first + 1..].iter().map(|o| l.word(o)).collect::<Result<_>>()?;
    if operands.len() != 1 + usize::from(arithmetic == Arithmetic::Compare) {
        return l.error(format!("{} with {} operands", s.opcode, s.operands.len()));
    }
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
    let k: usize = match (*shape, *a, *b) {
        ("m16n8k8", "f16", "f16") | ("m16n8k8", "bf16", "bf16") => 8,
        ("m16n8k16", "f16", "f16") | ("m16n8k16", "bf16", "bf16") => 16,
        ("m16n8k4", "tf32", "tf32") => 4,
        ("m16n8k8", "tf32", "tf32") => 8,
        ("m16n8k16", "e4m3" | "e5m2", "e4m3" | "e5m2") => 16,
        ("m16n8k32", "e4m3" | "e5m2", "e4m3" | "e5m2") => 32,
        _ => return l.error(unknown),
    };
    let (Some(a), Some(b)) = (element(a), element(b)) else { return l.error(unknown) };
    let (d, list_a) = (four(l, operand(l, s, 0)?)?, registers(l, operand(l, s, 1)?)?);
    let (list_b, c) = (registers(l, operand(l, s, 2)?)?, four(l, operand(l, s, 3)?)?);
    if list_a.len() * 32 * 4 != 16 * k * a.bytes() || list_b.len() * 32 * 4 != 8 * k * b.bytes() {
        return l.error(format!("{} of {} and {} registers", s.opcode, list_a.len(), list_b.len()));
    }
    Ok(Op::Mma(Box::new(Mma { d, a: list_a, b: list_b, c, k, elements: [a, b] })))
}
