//! The rules that are checked without running anything, each broken once.

use super::machine::kernel;
use crate::lint::{Contract, check};
use crate::parse::parse;

fn found(body: &str, contract: Contract<'_>) -> Vec<String> {
    let text = kernel(body);
    check(&parse(&text, "k", "k.ptx").unwrap(), "k.ptx", contract)
}

#[track_caller]
fn finds(body: &str, contract: Contract<'_>, what: &str) {
    let found = found(body, contract);
    assert!(found.iter().any(|text| text.contains(what)), "{found:?}");
}

const WAITS: Contract<'_> = Contract { waits: true, constant: None };
const STEP: Contract<'_> = Contract { waits: false, constant: Some(&[0]) };

#[test]
fn dependents_wait_on_every_way_and_store_nothing_before() {
    let wait = "griddepcontrol.wait;\n";
    assert!(
        found(&format!("ld.global.u32 %r2, [%rd1];\n{wait}st.global.u32 [%rd2], %r2;\n"), WAITS)
            .is_empty()
    );
    finds(&format!("st.global.u32 [%rd2], %r1;\n{wait}"), WAITS, "st.global.u32 before the wait");
    finds(
        &format!("red.relaxed.gpu.global.add.u32 [%rd2], 1;\n{wait}"),
        WAITS,
        "red.relaxed.gpu.global.add.u32 before",
    );
    let early_way_out = format!("setp.eq.u32 %p1, %r1, 0;\n@%p1 bra $END;\n{wait}$END:\n");
    finds(&early_way_out, WAITS, "a way out without griddepcontrol.wait");
    finds(&format!("setp.eq.u32 %p1, %r1, 0;\n@%p1 {wait}"), WAITS, "a way out without");
    finds(
        "mov.u32 %r2, smem;\ncp.async.cg.shared.global [%r2], [%rd1], 16;\ngriddepcontrol.wait;\n",
        WAITS,
        "before the wait",
    );
    finds("st.global.u32 [%rd2], %r1;\n", WAITS, "no griddepcontrol.wait at all");
}

#[test]
fn constant_loads_are_of_the_step_buffer() {
    let load = "add.s64 %rd3, %rd1, 16;\nld.global.nc.u32 %r2, [%rd3];\n";
    assert!(found(load, STEP).is_empty());
    finds(&load.replace("%rd1,", "%rd2,"), STEP, "parameters at [8]");
    // Through a register that is one or the other.
    let either = format!(
        "setp.eq.u32 %p1, %r1, 0;\nselp.b64 %rd4, %rd1, %rd2, %p1;\n{}",
        load.replace("%rd1,", "%rd4,")
    );
    finds(&either, STEP, "parameters at [8]");
    // An address out of memory starts from nothing that is known.
    finds("ld.global.u64 %rd4, [%rd1];\nld.global.nc.u32 %r2, [%rd4];\n", STEP, "parameters at []");
}

#[test]
fn there_is_no_local_memory() {
    finds("st.local.u32 [%rd3], %r1;\n", Contract::default(), "local memory: st.local.u32");
    assert!(found("st.shared.u32 [smem], %r1;\n", Contract::default()).is_empty());
}

#[test]
fn instructions_of_whole_warps_stand_where_all_lanes_are() {
    let within = |condition: &str| format!("{condition}@%p1 bra $OUT;\nbar.sync 0;\n$OUT:\n");
    let plain = Contract::default();
    finds(&within("setp.eq.u32 %p1, %r1, 0;\n"), plain, "may have gone apart");
    finds(
        &within("and.b32 %r2, %r1, 32767;\nsetp.lt.u32 %p1, %r2, 40;\n"),
        plain,
        "may have gone apart",
    );
    // Whole warps, a value that all lanes have, a vote.
    // Of segments each has a lane of its own; a row of threads may end within a warp.
    for varying in [
        "shfl.sync.idx.b32 %r2, %r1, 3, 6175, -1;\nsetp.eq.u32 %p1, %r2, 1;\n",
        "mov.u32 %r2, %tid.y;\nsetp.eq.u32 %p1, %r2, 1;\n",
        "mov.u32 %r2, %tid.z;\nshr.u32 %r2, %r2, 5;\nsetp.eq.u32 %p1, %r2, 1;\n",
    ] {
        finds(&within(varying), plain, "may have gone apart");
    }
    for uniform in [
        "setp.lt.u32 %p1, %r1, 64;\n",
        "shr.u32 %r2, %r1, 5;\nsetp.eq.u32 %p1, %r2, 1;\n",
        "shr.u32 %r2, %r1, 1;\nand.b32 %r3, %r2, 2147483632;\nsetp.eq.u32 %p1, %r3, 16;\n",
        "ld.global.u32 %r2, [%rd1];\nsetp.eq.u32 %p1, %r2, 1;\n",
        "setp.eq.u32 %p2, %r1, 0;\nvote.sync.ballot.b32 %r2, %p2, -1;\nsetp.eq.u32 %p1, %r2, 1;\n",
        "shfl.sync.idx.b32 %r2, %r1, 3, 31, -1;\nsetp.eq.u32 %p1, %r2, 1;\n",
    ] {
        assert_eq!(found(&within(uniform), plain), Vec::<String>::new(), "{uniform}");
    }
    // Lanes leave a loop one after the other; behind it they have met.
    let turns = "mov.u32 %r2, %r1;\n$L:\nBODYadd.s32 %r2, %r2, -1;\nsetp.gt.s32 %p1, %r2, 0;\n@%p1 bra $L;\nEND";
    finds(
        &turns.replace("BODY", "bar.sync 0;\n").replace("END", ""),
        plain,
        "bar.sync where lanes",
    );
    assert!(found(&turns.replace("BODY", "").replace("END", "bar.sync 0;\n"), plain).is_empty());
    // What was written where lanes are apart differs behind.
    let phi = "mov.u32 %r2, 0;\nsetp.eq.u32 %p2, %r1, 0;\n@%p2 bra $A;\nmov.u32 %r2, 1;\n$A:\nsetp.eq.u32 %p1, %r2, 0;\n";
    finds(&within(phi), plain, "may have gone apart");
}

#[test]
fn products_stand_between_fence_and_wait() {
    let list = (0..32).map(|i| format!("%f{i}")).collect::<Vec<_>>().join(",");
    let product = format!(
        "setp.ne.u32 %p1, 0, 1;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{{list}}}, %rd1, %rd2, %p1, 1, 1, 0, 0;\n"
    );
    let (fence, commit) = ("wgmma.fence.sync.aligned;\n", "wgmma.commit_group.sync.aligned;\n");
    let (wait, read) = ("wgmma.wait_group.sync.aligned 0;\n", "add.f32 %f100, %f3, %f3;\n");
    let plain = Contract::default();
    assert_eq!(
        found(&format!("{fence}{product}{product}{commit}{wait}{read}"), plain),
        Vec::<String>::new()
    );
    finds(&format!("{product}{commit}{wait}{read}"), plain, "wgmma without a fence");
    finds(
        &format!("{fence}{product}{commit}{wait}{product}{commit}{wait}"),
        plain,
        "wgmma without a fence",
    );
    finds(
        &format!("{fence}{product}{commit}{read}{wait}"),
        plain,
        "add.f32 of a register whose wgmma",
    );
    let one_left = wait.replace(" 0;", " 1;");
    finds(
        &format!("{fence}{product}{commit}{one_left}{read}"),
        plain,
        "add.f32 of a register whose wgmma",
    );
    // A in registers is read until the wait.
    let of_registers = product.replace("%rd1,", "{%r10,%r11,%r12,%r13},").replace("0, 0;", "0;");
    let write = "mov.u32 %r12, 1;\n";
    finds(
        &format!("{fence}{of_registers}{commit}{write}{wait}"),
        plain,
        "mov.u32 of a register whose wgmma",
    );
    assert!(found(&format!("{fence}{of_registers}{commit}{wait}{write}"), plain).is_empty());
}

#[test]
fn lanes_that_have_ended_are_missed() {
    let matrix = "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r3}, [smem];\n";
    let plain = Contract::default();
    let parts = "setp.lt.u32 %p1, %r1, 40;\n";
    finds(
        &format!("{parts}@%p1 ret;\n{matrix}"),
        plain,
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 where",
    );
    finds(&format!("{parts}@!%p1 bra $ON;\nret;\n$ON:\n{matrix}"), plain, "where lanes of a warp");
    // Whole warps may go, and a block's barriers do without those that have gone.
    let whole = parts.replace("40", "64");
    for fine in [format!("{whole}@%p1 ret;\n{matrix}"), format!("{parts}@%p1 ret;\nbar.sync 0;\n")]
    {
        assert_eq!(found(&fine, plain), Vec::<String>::new());
    }
}
