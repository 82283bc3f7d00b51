//! `wgmma`: when its registers may be used.

use super::machine::{Setup, run};
use crate::block::Outcome;

const FENCE: &str = "wgmma.fence.sync.aligned;\n";
const WAIT: &str = "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n";
const TOUCHES: &str = "touches a register of a wgmma that is under way";
const UNFENCED: &str = "used since the last wgmma.fence";

fn list(n: usize) -> String {
    (0..n / 2).map(|i| format!("%f{i}")).collect::<Vec<_>>().join(",")
}

/// A product of `n` columns into the registers from %f0 on, whose A is in registers, or shared memory.
fn product(n: usize, in_registers: bool, adds: bool) -> String {
    let a = if in_registers { "{%r10,%r11,%r12,%r13}" } else { "%rd10" };
    let flags = if in_registers { "1, 1, 0" } else { "1, 1, 0, 0" };
    format!(
        "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{}}}, {a}, %rd10, {}, {flags};\n",
        list(n),
        if adds { "%p1" } else { "%p2" },
    )
}

/// What is said where 128 threads execute it, with A and the accumulators written before.
fn said(body: &str) -> Vec<String> {
    let mut all = String::from(
        "setp.eq.u32 %p1, 0, 0;\nsetp.ne.u32 %p2, 0, 0;\nmov.u64 %rd10, 4611686293305360448;\n",
    );
    for i in 0..64 {
        all += &format!("mov.f32 %f{i}, 0f00000000;\n");
    }
    for i in 10..14 {
        all += &format!("mov.u32 %r{i}, 0;\n");
    }
    // The descriptor: from address 1024 on, 16 and 1024 bytes, swizzled by 128.
    let ran = run(&(all + body), &[], &Setup { threads: 128, ..Setup::default() });
    assert_eq!(ran.outcome, Outcome::Ended, "{:?}", ran.reports);
    ran.reports
}

#[track_caller]
fn finds(body: &str, what: &str) {
    let said = said(body);
    assert!(!said.is_empty() && said.iter().all(|text| text.contains(what)), "{said:?}");
}

#[test]
fn a_is_held_until_the_wait() {
    let product = product(64, true, true);
    for touch in ["mov.u32 %r12, 1;\n", "add.s32 %r20, %r12, 1;\n"] {
        finds(&format!("{FENCE}{product}{touch}{WAIT}"), TOUCHES);
        assert_eq!(said(&format!("{FENCE}{product}{WAIT}{touch}")), Vec::<String>::new());
    }
    // Of two products with the same A, the first one alone was waited for.
    let one_left = "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;\n";
    let two = format!("{FENCE}{product}wgmma.commit_group.sync.aligned;\n{product}{one_left}");
    finds(&format!("{two}mov.u32 %r12, 1;\n{WAIT}"), TOUCHES);
    assert_eq!(said(&format!("{two}{WAIT}mov.u32 %r12, 1;\n")), Vec::<String>::new());
}

#[test]
fn accumulators_are_held_until_the_wait() {
    let product = product(64, false, true);
    for touch in ["mov.f32 %f7, 0f00000000;\n", "add.f32 %f100, %f7, %f7;\n"] {
        finds(&format!("{FENCE}{product}{touch}{WAIT}"), TOUCHES);
        assert_eq!(said(&format!("{FENCE}{product}{WAIT}{touch}")), Vec::<String>::new());
    }
}

#[test]
fn a_fence_stands_between_other_uses_and_a_product() {
    let none = Vec::<String>::new();
    for (in_registers, adds) in [(false, false), (false, true), (true, false), (true, true)] {
        let product = product(64, in_registers, adds);
        assert_eq!(said(&format!("{FENCE}{product}{product}{WAIT}")), none);
        // Without any, though nothing is added to; and what was read by an epilogue, and is used again.
        finds(&format!("{product}{WAIT}"), UNFENCED);
        let epilogue = "add.f32 %f100, %f7, %f7;\n";
        let twice = |fence| format!("{FENCE}{product}{WAIT}{epilogue}{fence}{product}{WAIT}");
        finds(&twice(""), UNFENCED);
        assert_eq!(said(&twice(FENCE)), none);
    }
    finds(&format!("{FENCE}mov.u32 %r12, 1;\n{}{WAIT}", product(64, true, true)), UNFENCED);
    // Accumulators of the same shape follow each other as they are, those of another one do not.
    let (small, large) = (product(64, false, true), product(128, false, true));
    assert_eq!(said(&format!("{FENCE}{large}{large}{WAIT}{large}{WAIT}")), none);
    finds(&format!("{FENCE}{large}{small}{WAIT}"), UNFENCED);
}

#[test]
fn what_is_added_to_was_written() {
    let product = product(136, false, true);
    finds(&format!("{FENCE}{product}{WAIT}"), "reads a register that was not written");
    let product = product.replace("%p1", "%p2");
    assert_eq!(said(&format!("{FENCE}{product}{WAIT}")), Vec::<String>::new());
}

#[test]
fn the_first_product_has_a_fence_before_it_whatever_it_uses() {
    let product = product(8, false, false);
    let body = |fence: &str| {
        format!(
            "setp.ne.u32 %p2, 0, 0;\nmov.u64 %rd10, 4611686293305360448;\n{fence}{product}{WAIT}"
        )
    };
    let setup = Setup { threads: 128, ..Setup::default() };
    assert!(run(&body(""), &[], &setup).reports[0].contains(UNFENCED));
    assert_eq!(run(&body(FENCE), &[], &setup).reports, Vec::<String>::new());
}
