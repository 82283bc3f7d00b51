//! What is asked for and happens later: copies, mbarriers, `wgmma`.

use super::{address, element, four, one, only, operand, registers, two};
use crate::operations::{
    Address, Base, Bulk, BulkSize, CopyAsync, Mbarrier, MbarrierOp, Op, Wgmma, WgmmaA,
};
use crate::parse::{Operand, Result, Statement};
use crate::program::Lowering;
use crate::tensor::Element;

pub(super) fn copies<'e, 't>(
    l: &mut Lowering<'e, 't>,
    s: &'e Statement<'t>,
    words: &[&str],
) -> Result<Op> {
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
            return Ok(Op::BulkWait(left, rest.contains(&"read")));
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

pub(super) fn mbarrier<'e, 't>(
    l: &mut Lowering<'e, 't>,
    s: &'e Statement<'t>,
    words: &[&str],
) -> Result<Op> {
    let unknown = format!("the executor has no opcode {}", s.opcode);
    // All of them name shared memory: a generic address is another number.
    let [what, middle @ .., "shared" | "shared::cta", "b64"] = &words[1..] else {
        return l.error(unknown);
    };
    let (at, op) = match (*what, middle) {
        ("init", []) => (0, MbarrierOp::Init(l.word(operand(l, s, 1)?)?)),
        ("inval", []) => (0, MbarrierOp::Invalidate),
        ("expect_tx", [] | ["relaxed", "cta"]) => {
            (0, MbarrierOp::Expect(l.word(operand(l, s, 1)?)?))
        }
        (
            "arrive" | "arrive_drop",
            [] | ["release", "cta"] | ["expect_tx"] | ["expect_tx", "release", "cta"],
        ) => {
            let state = l.any(operand(l, s, 0)?)?;
            let third = s.operands.get(2).map(|count| l.word(count)).transpose()?;
            let expects = middle.first() == Some(&"expect_tx");
            if expects && third.is_none() {
                return l.error(format!("{} of no bytes", s.opcode));
            }
            let (count, expect) = if expects { (None, third) } else { (third, None) };
            (1, MbarrierOp::Arrive { state, count, expect, drop: *what == "arrive_drop" })
        }
        ("try_wait" | "test_wait", [] | ["acquire", "cta"]) => {
            let done = l.predicate(operand(l, s, 0)?)?;
            let state = Some(l.double(operand(l, s, 2)?)?);
            (1, MbarrierOp::Test { done, parity: None, state, suspends: *what == "try_wait" })
        }
        ("try_wait" | "test_wait", ["parity"] | ["parity", "acquire", "cta"]) => {
            let done = l.predicate(operand(l, s, 0)?)?;
            let parity = Some(l.word(operand(l, s, 2)?)?);
            (1, MbarrierOp::Test { done, parity, state: None, suspends: *what == "try_wait" })
        }
        _ => return l.error(unknown),
    };
    Ok(Op::Mbarrier(Box::new(Mbarrier { at: address(l, operand(l, s, at)?)?, op })))
}

pub(super) fn wgmma<'e, 't>(
    l: &mut Lowering<'e, 't>,
    s: &'e Statement<'t>,
    words: &[&str],
) -> Result<Op> {
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
    let (Some(element_a), Some(element_b)) = (a, b) else { return l.error(unknown) };
    let is_pair = match element_a {
        Element::E4m3 | Element::E5m2 => element_b.bytes() == 1,
        _ => element_a == element_b,
    };
    let k = 32 / element_a.bytes();
    let n = shape.strip_prefix("m64n").and_then(|rest| rest.strip_suffix(&format!("k{k}")));
    let n = n.and_then(|n| n.parse().ok()).filter(|n| (8..=256).contains(n) && n % 8 == 0);
    let (Some(n), true) = (n, is_pair) else { return l.error(unknown) };
    let d = registers(l, operand(l, s, 0)?)?;
    if d.len() * 2 != n {
        return l.error(format!("{} of {} registers", s.opcode, d.len()));
    }
    let a = match operand(l, s, 1)? {
        list @ Operand::Vector(_) => WgmmaA::Registers(four(l, list)?),
        descriptor => WgmmaA::Descriptor(l.double(descriptor)?),
    };
    let (b, scale_d) = (l.double(operand(l, s, 2)?)?, l.predicate(operand(l, s, 3)?)?);
    // Those of 16 bits may be transposed, in shared memory.
    let (in_registers, has_two) = (matches!(a, WgmmaA::Registers(_)), element_a.bytes() == 2);
    let count = 6 + if has_two { 2 - usize::from(in_registers) } else { 0 };
    let flags = s.operands.get(4..).unwrap_or_default();
    if s.operands.len() != count {
        return l.error(format!("{} with {} operands", s.opcode, s.operands.len()));
    }
    let flags = flags.iter().map(|flag| l.integer(flag)).collect::<Result<Vec<_>>>()?;
    let (signs, turns) = flags.split_at(2);
    if !signs.iter().all(|sign| matches!(*sign as i32, 1 | -1))
        || turns.iter().any(|turn| *turn > 1)
    {
        return l.error(format!("{} with {flags:?}", s.opcode));
    }
    let negated = [signs[0] as i32 == -1, signs[1] as i32 == -1];
    let transposed = match *turns {
        [b] => [false, b == 1],
        [a, b] => [a == 1, b == 1],
        _ => [false; 2],
    };
    let elements = [element_a, element_b];
    Ok(Op::Wgmma(Box::new(Wgmma { d, a, b, scale_d, negated, transposed, elements, n })))
}
