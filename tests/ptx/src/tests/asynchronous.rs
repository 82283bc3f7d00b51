//! What is asked for and happens later: copies, mbarriers, registers given back.

use super::machine::{Setup, fault, out, run};
use crate::block::Outcome;
use crate::boxes::Map;

const ADDRESSES: &str = "mov.u32 %r3, smem;\nshl.b32 %r2, %r1, 4;\nadd.s32 %r4, %r2, %r3;\nmul.wide.u32 %rd3, %r1, 16;\nadd.s64 %rd4, %rd1, %rd3;\n";

fn words(n: u32) -> Vec<u32> {
    (0..n).map(|i| i.wrapping_mul(0x9e37_79b9)).collect()
}

#[test]
fn copies_land_when_they_are_waited_for_and_not_before() {
    // The second group is waited for or not; what has not landed is what was there: all ones.
    for (left, expected) in [(0, true), (1, false)] {
        let body = format!(
            "{ADDRESSES}cp.async.cg.shared.global [%r4], [%rd4], 16, 16;\ncp.async.commit_group;\ncp.async.cg.shared.global [%r4+512], [%rd4], 16, 0;\ncp.async.commit_group;\ncp.async.wait_group {left};\nld.shared.u32 %r5, [%r4];\nld.shared.u32 %r6, [%r4+512];\nand.b32 %r6, %r6, 1;\nadd.s32 %r5, %r5, %r6;\n{}",
            out("%r5")
        );
        let input = words(128);
        let ran = run(&body, &input, &Setup::default());
        assert!(ran.reports.is_empty(), "{:?}", ran.reports);
        for i in 0..32 {
            assert_eq!(ran.out[i], input[4 * i].wrapping_add(u32::from(!expected)));
        }
    }
}

#[test]
fn groups_are_those_of_each_thread() {
    // Odd lanes commit once more: for them the first group is older.
    let body = format!(
        "{ADDRESSES}and.b32 %r7, %r1, 1;\nsetp.eq.u32 %p1, %r7, 1;\ncp.async.cg.shared.global [%r4], [%rd4], 16;\ncp.async.commit_group;\n@%p1 cp.async.commit_group;\ncp.async.wait_group 1;\nld.shared.u32 %r5, [%r4];\n{}",
        out("%r5")
    );
    let input = words(128);
    let ran = run(&body, &input, &Setup::default());
    for i in 0..32 {
        assert_eq!(ran.out[i], if i % 2 == 1 { input[4 * i] } else { u32::MAX });
    }
}

const MBARRIER: &str = "mov.u32 %r3, smem;\nsetp.eq.u32 %p1, %r1, 0;\n@%p1 mbarrier.init.shared::cta.b64 [%r3], 64;\nbar.sync 0;\n";

#[test]
fn mbarriers_count_arrivals_and_have_phases() {
    // 32 threads wait for the other 32 of them, twice.
    let body = format!(
        "{MBARRIER}setp.lt.u32 %p2, %r1, 64;\nmov.u32 %r9, 0;\n@%p2 bra $ARRIVE;\n{{\n.reg .pred p;\nL:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%r3], 0;\n@!p bra L;\n}}\nmbarrier.test_wait.parity.shared::cta.b64 %p3, [%r3], 1;\nselp.u32 %r9, 1, 2, %p3;\nbra.uni $END;\n$ARRIVE:\nmbarrier.arrive.shared::cta.b64 _, [%r3];\n$END:\n{}",
        out("%r9")
    );
    for seed in 0..20 {
        let ran = run(&body, &[], &Setup { threads: 96, seed, ..Setup::default() });
        assert_eq!((ran.outcome, &ran.reports[..]), (Outcome::Ended, &[][..]));
        // In the second phase no thread has arrived: parity 1 is still the phase before the first.
        assert!(ran.out[64..96].iter().all(|x| *x == 2), "{:?}", &ran.out[64..96]);
    }
}

#[test]
fn mbarriers_that_are_misused_are_reported() {
    let two = Setup { threads: 64, ..Setup::default() };
    let often = format!("{MBARRIER}mbarrier.arrive.shared::cta.b64 _, [%r3], 3;\n");
    assert!(fault(&often, &two).contains("more arrivals than its count"));
    assert!(
        fault("mov.u32 %r3, smem;\nmbarrier.arrive.shared::cta.b64 _, [%r3];\n", &two)
            .contains("no mbarrier at 0x400")
    );
    let never = format!(
        "{MBARRIER}{{\n.reg .pred p;\nL:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%r3], 0;\n@!p bra L;\n}}\n"
    );
    assert!(fault(&never, &two).contains("deadlock"));
}

#[test]
fn those_that_drop_out_are_not_waited_for_again() {
    // Lane 0 drops out with 2 of 64: the second phase is complete with 62.
    let body = format!(
        "{MBARRIER}@%p1 mbarrier.arrive_drop.shared::cta.b64 _, [%r3], 2;\nbar.sync 0;\n@%p1 mbarrier.arrive.shared::cta.b64 _, [%r3], 62;\nbar.sync 0;\n@%p1 mbarrier.arrive.shared::cta.b64 _, [%r3], 62;\nbar.sync 0;\nmbarrier.test_wait.parity.shared::cta.b64 %p3, [%r3], 1;\nselp.u32 %r9, 1, 2, %p3;\n{}",
        out("%r9")
    );
    let ran = run(&body, &[], &Setup::default());
    assert_eq!((ran.outcome, &ran.reports[..]), (Outcome::Ended, &[][..]));
    assert!(ran.out[..32].iter().all(|x| *x == 1), "{:?}", &ran.out[..32]);
}

#[test]
fn a_copys_arrival_tells_what_was_done_when_it_was_asked_for() {
    let body = "mov.u32 %r3, smem;\nsetp.eq.u32 %p1, %r1, 0;\n@%p1 mbarrier.init.shared::cta.b64 [%r3], 1;\nbar.sync 0;\n@%p1 cp.async.cg.shared.global [%r3+1024], [%rd1], 16;\n@%p1 cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%r3];\n@%p1 bar.warp.sync 1;\n@%p1 cp.async.wait_all;\n";
    let input = words(8);
    let aligned = &input[input.as_ptr().align_offset(16)..];
    let ran = run(body, aligned, &Setup::default());
    assert_eq!((ran.outcome, &ran.reports[..]), (Outcome::Ended, &[][..]));
    // 17 and 18 are the mbarrier's clocks, 19 is that of what the thread had done before the barrier of
    // the warp; by it others see the copy, and it is what they get.
    let since = ran.events.iter().position(|event| event == "release 19 0 0x1").unwrap();
    assert_eq!(
        ran.events[since + 1..],
        ["sync 0 0x1", "landed 0 0x1, seen in Some(19)", "move 19 17", "move 17 18"]
    );
}

#[test]
fn copies_arrive_at_an_mbarrier_when_they_have_landed() {
    for noinc in ["", ".noinc"] {
        // With .noinc the arrivals are of those that the count names; without, of their own.
        let count =
            if noinc.is_empty() { "mbarrier.arrive.shared::cta.b64 _, [%r3];\n" } else { "" };
        let body = format!(
            "mov.u32 %r3, smem;\nsetp.eq.u32 %p1, %r1, 0;\n@%p1 mbarrier.init.shared::cta.b64 [%r3], 32;\nbar.sync 0;\nshl.b32 %r2, %r1, 4;\nadd.s32 %r4, %r2, %r3;\nmul.wide.u32 %rd3, %r1, 16;\nadd.s64 %rd4, %rd1, %rd3;\ncp.async.cg.shared.global [%r4+1024], [%rd4], 16;\ncp.async.mbarrier.arrive{noinc}.shared::cta.b64 [%r3];\n{count}{{\n.reg .pred p;\nL:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%r3], 0;\n@!p bra L;\n}}\nld.shared.u32 %r5, [%r4+1024];\n{}",
            out("%r5")
        );
        let input = words(128);
        let ran = run(&body, &input, &Setup::default());
        assert_eq!((ran.outcome, &ran.reports[..]), (Outcome::Ended, &[][..]), "{noinc}");
        assert!((0..32).all(|i| ran.out[i] == input[4 * i]), "{noinc}");
    }
}

#[test]
fn bulk_copies_count_their_bytes() {
    for bytes in [64, 80] {
        let body = format!(
            "mov.u32 %r3, smem;\nmov.u32 %r8, 64;\nsetp.eq.u32 %p1, %r1, 0;\n@%p1 mbarrier.init.shared::cta.b64 [%r3], 1;\nbar.sync 0;\n@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], {bytes};\n@%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r3+1024], [%rd1], %r8, [%r3];\n{{\n.reg .pred p;\nL:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%r3], 0;\n@!p bra L;\n}}\nand.b32 %r2, %r1, 15;\nshl.b32 %r2, %r2, 2;\nadd.s32 %r2, %r2, %r3;\nld.shared.u32 %r5, [%r2+1024];\n{}",
            out("%r5")
        );
        let input = words(16);
        let aligned: Vec<u128> = input
            .chunks(4)
            .map(|w| w.iter().rev().fold(0, |x, w| x << 32 | u128::from(*w)))
            .collect();
        let input_words: Vec<u32> =
            aligned.iter().flat_map(|x| (0..4).map(move |i| (x >> (32 * i)) as u32)).collect();
        assert_eq!(input_words, input);
        // SAFETY: 16 bytes each, as four words.
        let view = unsafe { std::slice::from_raw_parts(aligned.as_ptr().cast::<u32>(), 16) };
        if bytes != 64 {
            let ran = run(&body, view, &Setup::default());
            assert!(
                ran.outcome == Outcome::Fault && ran.reports[0].contains("deadlock"),
                "{:?}",
                ran.reports
            );
            continue;
        }
        let ran = run(&body, view, &Setup::default());
        assert_eq!((ran.outcome, &ran.reports[..]), (Outcome::Ended, &[][..]));
        assert!((0..32).all(|i| ran.out[i] == input[i % 16]));
    }
}

#[test]
fn stores_in_bulk_happen_when_their_group_is_waited_for() {
    let body = |wait: &str| {
        format!(
            "mov.u32 %r3, smem;\nshl.b32 %r2, %r1, 2;\nadd.s32 %r4, %r2, %r3;\nadd.s32 %r5, %r1, 1;\nst.shared.u32 [%r4], %r5;\nfence.proxy.async.shared::cta;\nbar.warp.sync -1;\nsetp.eq.u32 %p1, %r1, 0;\nmov.u32 %r8, 128;\n@%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd2], [%r3], %r8;\n@%p1 cp.async.bulk.commit_group;\n{wait}st.shared.u32 [%r4], 0;\n"
        )
    };
    let setup = Setup { fill: !0, ..Setup::default() };
    let wait = "@%p1 cp.async.bulk.wait_group.read 0;\nbar.warp.sync -1;\n";
    let waited = run(&body(wait), &[], &setup);
    assert_eq!((waited.outcome, &waited.reports[..]), (Outcome::Ended, &[][..]));
    assert!((0..32).all(|i| waited.out[i] == i as u32 + 1), "{:?}", &waited.out[..4]);
    // What was not waited for is read late.
    let early = run(&body(""), &[], &setup);
    assert!((0..32).all(|i| early.out[i] == 0), "{:?}", &early.out[..4]);
    // Whose reads alone are waited for, of that nothing is in global memory yet.
    for (wait, seen) in [(wait.to_owned(), u32::MAX), (wait.replace(".read", ""), 1)] {
        let load = "ld.global.u32 %r9, [%rd2];\nst.global.u32 [%rd2+512], %r9;\n";
        let ran = run(&body(&(wait + load)), &[], &setup);
        assert_eq!(ran.out[128], seen);
    }
}

#[test]
fn tensor_copies_fill_what_is_outside_with_zeros() {
    let input: Vec<u32> = (1..=64).collect();
    // 8 words a row, 8 rows; a box of 4 x 2 that reaches over the right and the lower edge.
    let map = Map {
        base: input.as_ptr() as u64,
        rank: 2,
        element_bytes: 4,
        swizzle: 0,
        dim: [8, 8, 0, 0, 0],
        stride: [0, 32, 0, 0, 0],
        box_: [4, 2, 0, 0, 0],
    };
    let body = format!(
        "mov.u32 %r3, smem;\nmov.u32 %r8, 6;\nmov.u32 %r9, 7;\nsetp.eq.u32 %p1, %r1, 0;\n@%p1 mbarrier.init.shared::cta.b64 [%r3], 1;\nbar.sync 0;\n@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], 32;\n@%p1 cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r3+1024], [%rd1, {{%r8,%r9}}], [%r3];\n{{\n.reg .pred p;\nL:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%r3], 0;\n@!p bra L;\n}}\nand.b32 %r2, %r1, 7;\nshl.b32 %r2, %r2, 2;\nadd.s32 %r2, %r2, %r3;\nld.shared.u32 %r5, [%r2+1024];\n{}",
        out("%r5")
    );
    let ran = run(&body, &input, &Setup { map: Some(map), ..Setup::default() });
    assert_eq!((ran.outcome, &ran.reports[..]), (Outcome::Ended, &[][..]));
    assert_eq!(ran.out[..8], [63, 64, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn lines_that_a_swizzled_box_does_not_fill_are_checked_where_they_lie() {
    // 16 bytes a line, 128 from one to the next: with its last line it is beyond shared memory.
    let input = words(1024);
    let map = Map {
        base: input.as_ptr() as u64,
        rank: 2,
        element_bytes: 4,
        swizzle: 3,
        dim: [4, 64, 0, 0, 0],
        stride: [0, 16, 0, 0, 0],
        box_: [4, 16, 0, 0, 0],
    };
    let body = |at: u32| {
        format!(
            "mov.u32 %r3, smem;\nmov.u32 %r8, 0;\nsetp.eq.u32 %p1, %r1, 0;\n@%p1 mbarrier.init.shared::cta.b64 [%r3], 1;\n@%p1 cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r3+{at}], [%rd1, {{%r8,%r8}}], [%r3];\n"
        )
    };
    let setup = Setup { map: Some(map), ..Setup::default() };
    assert!(run(&body(65536 - 2048), &input, &setup).reports.is_empty());
    assert!(fault(&body(65536 - 1024), &setup).contains("is outside"));
    let large = Map { box_: [256, 256, 0, 0, 0], ..map };
    assert!(fault(&body(1024), &Setup { map: Some(large), ..setup }).contains("out of bounds"));
}

#[test]
fn registers_are_given_back_before_others_take_them() {
    // 128 threads of a kernel of 128: 248 each at first. Two warps give back what the others take.
    let body = "setp.lt.u32 %p1, %r1, 64;\n@%p1 bra $GIVE;\nsetmaxnreg.inc.sync.aligned.u32 256;\nbra.uni $END;\n$GIVE:\nsetmaxnreg.dec.sync.aligned.u32 40;\n$END:\n";
    let ran = run(body, &[], &Setup { threads: 128, ..Setup::default() });
    assert_eq!((ran.outcome, &ran.reports[..]), (Outcome::Ended, &[][..]));
    assert!(
        fault("setmaxnreg.dec.sync.aligned.u32 41;\n", &Setup::default())
            .contains("to 41 registers")
    );
    let nobody_gives = "setmaxnreg.inc.sync.aligned.u32 256;\nbar.sync 0;\n";
    assert!(fault(nobody_gives, &Setup::default()).contains("deadlock"));
}
