//! Control flow: lanes that go apart and meet again, and what they do together.

use super::machine::{Setup, fault, out, result, run};
use crate::block::Outcome;

#[test]
fn lanes_that_go_apart_meet_again() {
    // Each lane turns as often as its number says, then all vote.
    let body = format!(
        "mov.u32 %r2, 0;\nmov.u32 %r3, %r1;\n$L:\nadd.s32 %r2, %r2, 3;\nsetp.ne.u32 %p1, %r3, 0;\nadd.s32 %r3, %r3, -1;\n@%p1 bra $L;\nsetp.gt.u32 %p2, %r2, 90;\nvote.sync.ballot.b32 %r4, %p2, -1;\nadd.s32 %r2, %r2, %r4;\n{}",
        out("%r2")
    );
    let votes = (0..32u32).filter(|lane| 3 * (lane + 1) > 90).fold(0, |all, lane| all | 1 << lane);
    let got = result(&body, &[]);
    assert!((0..32).all(|lane| got[lane] == 3 * (lane as u32 + 1) + votes), "{got:?}");
}

#[test]
fn both_sides_of_a_branch_are_executed() {
    let body = format!(
        "and.b32 %r2, %r1, 1;\nsetp.eq.u32 %p1, %r2, 0;\n@%p1 bra $EVEN;\nmov.u32 %r3, 100;\nbra.uni $END;\n$EVEN:\nmov.u32 %r3, 200;\n$END:\nbar.warp.sync -1;\nadd.s32 %r3, %r3, %r1;\n{}",
        out("%r3")
    );
    let got = result(&body, &[]);
    assert!((0..32).all(|lane| got[lane as usize] == if lane % 2 == 0 { 200 } else { 100 } + lane));
}

#[test]
fn a_collective_of_lanes_that_are_elsewhere_is_divergent() {
    let half = "setp.lt.u32 %p1, %r1, 16;\n";
    let guarded = format!(
        "{half}@%p1 bra $IN;\nbra.uni $OUT;\n$IN:\nshfl.sync.idx.b32 %r2, %r1, 0, 31, -1;\n$OUT:\nbar.warp.sync -1;\n"
    );
    assert!(fault(&guarded, &Setup::default()).contains("divergent"));
    let barrier = format!("{half}@%p1 bra $OUT;\nbar.sync 0;\n$OUT:\n");
    assert!(fault(&barrier, &Setup::default()).contains("divergent bar.sync: 16 lanes"));
    let ended = format!("{half}@%p1 ret;\nshfl.sync.idx.b32 %r2, %r1, 0, 31, -1;\n");
    assert!(fault(&ended, &Setup::default()).contains("divergent shfl.sync"));
    let mma = format!(
        "{half}mov.f32 %f1, 0f00000000;\nmov.u32 %r2, 0;\n@%p1 mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{%f2,%f3,%f4,%f5}}, {{%r2,%r2,%r2,%r2}}, {{%r2,%r2}}, {{%f1,%f1,%f1,%f1}};\n"
    );
    assert!(fault(&mma, &Setup::default()).contains("divergent mma"));
    let not_a_member = "shfl.sync.idx.b32 %r2, %r1, 0, 31, 1;\n";
    assert!(fault(not_a_member, &Setup::default()).contains("not in its own mask"));
}

#[test]
fn lanes_that_have_ended_are_missed_by_what_needs_all_of_them() {
    let ended = "setp.lt.u32 %p1, %r1, 16;\nmov.u32 %r3, smem;\nmov.u32 %r2, 0;\n@%p1 ret;\n";
    for (what, instruction) in [
        ("divergent ldmatrix", "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r4}, [%r3];\n"),
        ("divergent movmatrix", "movmatrix.sync.aligned.m8n8.trans.b16 %r4, %r2;\n"),
        ("divergent wgmma.fence", "wgmma.fence.sync.aligned;\n"),
    ] {
        let said = fault(&format!("{ended}{instruction}"), &Setup::default());
        assert!(said.contains(what) && said.contains("16 lanes"), "{said}");
    }
    // A barrier of the block does without them; and a warp may be short from the start.
    assert!(run(&format!("{ended}bar.sync 0;\n"), &[], &Setup::default()).reports.is_empty());
    let short = Setup { threads: 40, ..Setup::default() };
    assert!(
        run("movmatrix.sync.aligned.m8n8.trans.b16 %r4, %r1;\n", &[], &short).reports.is_empty()
    );
}

#[test]
fn what_a_lane_gets_from_one_that_takes_no_part_is_unknown() {
    // Of 8 lanes, each reads from the next but seven one: all but one of these are not in the mask.
    let body = |reads: &str| {
        format!(
            "setp.gt.u32 %p1, %r1, 7;\n@%p1 bra $OUT;\nadd.s32 %r3, %r1, 7;\nshfl.sync.idx.b32 %r2, %r1, %r3, 31, 255;\nsetp.eq.u32 %p2, %r1, 0;\n{reads}add.s32 %r4, %r2, 1;\n$OUT:\n"
        )
    };
    let said = run(&body(""), &[], &Setup::default()).reports;
    assert!(
        said.len() == 1 && said[0].contains("thread 1 ") && said[0].contains("not written"),
        "{said:?}"
    );
    assert!(run(&body("@%p2 "), &[], &Setup::default()).reports.is_empty());
}

#[test]
fn lanes_that_ask_in_vain_let_others_go_on() {
    // The even lanes ask, at a lower place, for what the odd ones then do.
    let body = format!(
        "mov.u32 %r3, smem;\nsetp.eq.u32 %p1, %r1, 0;\n@%p1 mbarrier.init.shared::cta.b64 [%r3], 16;\nbar.sync 0;\nand.b32 %r2, %r1, 1;\nsetp.eq.u32 %p2, %r2, 1;\n@%p2 bra $ODD;\n$ASK:\nmbarrier.test_wait.parity.shared::cta.b64 %p3, [%r3], 0;\n@!%p3 bra $ASK;\nbra.uni $END;\n$ODD:\nmbarrier.arrive.shared::cta.b64 _, [%r3];\n$END:\n{}",
        out("%r1")
    );
    for seed in 0..8 {
        let ran = run(&body, &[], &Setup { seed, ..Setup::default() });
        assert_eq!((ran.outcome, &ran.reports[..]), (Outcome::Ended, &[][..]), "{seed}");
    }
}

#[test]
fn what_never_ends_is_reported_by_its_line() {
    for endless in [
        "$L:\nadd.s32 %r1, %r1, 1;\nbra $L;\n",
        "$L:\nbra $L;\n",
        "mov.u32 %r3, smem;\nsetp.eq.u32 %p1, %r1, 0;\n@%p1 mbarrier.init.shared::cta.b64 [%r3], 1;\n$L:\nmbarrier.test_wait.parity.shared::cta.b64 %p3, [%r3], 0;\n@!%p3 bra $L;\n",
    ] {
        for seed in [0, 1] {
            let said = fault(endless, &Setup { seed, ..Setup::default() });
            assert!(said.contains("no end after 100000 instructions"), "{said}");
        }
    }
}

#[test]
fn a_part_of_a_warp_may_meet_by_its_mask() {
    let body = format!(
        "setp.lt.u32 %p1, %r1, 16;\nmov.u32 %r3, 0;\n@!%p1 bra $OUT;\nshfl.sync.bfly.b32 %r3, %r1, 15, 31, 65535;\n$OUT:\n{}",
        out("%r3")
    );
    let got = result(&body, &[]);
    assert!((0..32u32).all(|lane| got[lane as usize] == if lane < 16 { lane ^ 15 } else { 0 }));
}

#[test]
fn shuffles_by_clamp_and_segment() {
    // Segments of 8 lanes: the clamp has 0x1800 above.
    type From = fn(u32) -> u32;
    let cases: [(&str, u32, From); 4] = [
        ("down", 0x181f, |lane| if lane % 8 + 3 < 8 { lane + 3 } else { lane }),
        ("up", 0x1800, |lane| if lane % 8 >= 3 { lane - 3 } else { lane }),
        ("idx", 0x181f, |lane| lane / 8 * 8 + 3),
        ("bfly", 0x181f, |lane| lane ^ 3),
    ];
    for (mode, clamp, from) in cases {
        let body = format!(
            "shfl.sync.{mode}.b32 %r2|%p1, %r1, 3, {clamp}, -1;\nselp.u32 %r3, 1000, 0, %p1;\nadd.s32 %r2, %r2, %r3;\n{}",
            out("%r2")
        );
        let got = result(&body, &[]);
        for lane in 0..32u32 {
            let inside = u32::from(mode == "idx" || mode == "bfly" || from(lane) != lane);
            assert_eq!(got[lane as usize], from(lane) + 1000 * inside, "{mode} {lane}");
        }
    }
}

#[test]
fn warps_wait_at_barriers_whatever_their_order() {
    // Each thread writes, all wait, each reads another warp's word.
    let body = format!(
        "shl.b32 %r2, %r1, 2;\nmov.u32 %r3, smem;\nadd.s32 %r2, %r2, %r3;\nst.shared.u32 [%r2], %r1;\nbar.sync 1, 128;\nadd.s32 %r4, %r1, 37;\nand.b32 %r4, %r4, 127;\nshl.b32 %r4, %r4, 2;\nadd.s32 %r4, %r4, %r3;\nld.shared.u32 %r5, [%r4];\n{}",
        out("%r5")
    );
    for seed in 0..50 {
        let ran = run(&body, &[], &Setup { threads: 128, seed, ..Setup::default() });
        assert!(
            ran.reports.is_empty() && (0..128).all(|i| ran.out[i] == (i as u32 + 37) % 128),
            "{seed}"
        );
        let of = |what: &str| ran.events.iter().filter(|event| event.starts_with(what)).count();
        assert_eq!((of("release 1 "), of("acquire 1 ")), (4, 4));
    }
}

#[test]
fn a_barrier_that_nobody_completes_is_a_deadlock() {
    let body = "setp.lt.u32 %p1, %r1, 32;\n@%p1 bra $OUT;\nbar.sync 0;\n$OUT:\n";
    let said = fault(body, &Setup { threads: 64, ..Setup::default() });
    assert!(
        said.contains("deadlock") && said.contains("warp 1 waits in bar.sync at k.ptx:"),
        "{said}"
    );
    let said = fault("bar.sync 0, 33;\n", &Setup { threads: 64, ..Setup::default() });
    assert!(said.contains("of 33 threads"), "{said}");
}

#[test]
fn what_depends_on_the_kernel_before_waits_for_it() {
    let body = format!("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;\n{}", out("%r1"));
    let ran = run(&body, &[], &Setup { prior_done: false, ..Setup::default() });
    assert_eq!(ran.outcome, Outcome::Ended);
    assert_eq!(ran.events, ["let next", "the kernel before is done", "waited 0 0xffffffff"]);
}

#[test]
fn atomics_have_their_order_and_scope() {
    let body = "atom.acq_rel.gpu.global.add.u32 %r2, [%rd2], 2;\nred.relaxed.cta.global.add.u32 [%rd2], 1;\n";
    let ran = run(body, &[], &Setup::default());
    assert_eq!(ran.out[0], 96);
    assert!(ran.events[0].contains("acquire: true, release: true, device: true"));
    assert!(ran.events[32].contains("acquire: false, release: false, device: false"));
}
