//! Reading PTX: what is not known is named with its file and line.

use super::machine::{Setup, fault, kernel, out, program, result, run};

#[track_caller]
fn refused(body: &str, what: &str) {
    let text = kernel(body);
    let line = 1 + text.lines().position(|line| line == body.lines().next().unwrap()).unwrap();
    let why = program(&text).err().expect("it is refused");
    assert!(why.starts_with(&format!("k.ptx:{line}: ")) && why.contains(what), "{why}");
}

#[test]
fn what_is_not_known_is_refused_by_name_and_line() {
    refused("foo.b32 %r2, %r1;", "no opcode foo.b32");
    refused("add.sat.s32 %r2, %r1, %r1;", "no opcode add.sat.s32");
    refused("ld.global.v8.u32 %r2, [%rd1];", ".v8");
    refused("add.s32 %r2, %r1, %rd1;", "%rd1 is not of 32 bits");
    refused("add.s32 %r2, %r1;", "with 2 operands");
    refused("add.s32 %r2, %r1, %r999;", "%r999");
    refused("bra nowhere;", "no label nowhere");
    refused(
        "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%f1,%f2,%f3,%f4}, {%r1}, {%r1}, {%f1,%f2,%f3,%f4};",
        "no opcode mma",
    );
    refused("fence.acq_rel.gpu;", "no opcode fence.acq_rel.gpu");
    refused("st.global.u32 [%rd1+x], %r1;", "offset x");
}

/// What has a part too much or too few, or in another place, would be something else.
#[test]
fn opcodes_are_known_as_a_whole() {
    for opcode in [
        "atom.cluster.global.add.u32 %r2, [%rd1], 1;",
        "atom.foo.global.add.u32 %r2, [%rd1], 1;",
        "atom.gpu.acq_rel.global.add.u32 %r2, [%rd1], 1;",
        "atom.add.u32 %r2, [%rd1], 1;",
        "red.global.add.noftz.u32 [%rd1], 1;",
        "mbarrier.arrive.relaxed.cta.shared::cta.b64 _, [%r2];",
        "mbarrier.arrive.release.cluster.shared::cta.b64 _, [%r2];",
        "mbarrier.init.b64 [%r2], 1;",
        "mbarrier.test_wait.expect_tx.shared::cta.b64 %p1, [%r2], %rd3;",
        "mma.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r1,%r1,%r1,%r1,%r1,%r1,%r1}, {%r1,%r1,%r1,%r1}, {%f1,%f2,%f3,%f4};",
        "mma.sync.aligned.m16n8k16.row.col.f32.tf32.tf32.f32 {%f1,%f2,%f3,%f4}, {%r1,%r1,%r1,%r1,%r1,%r1,%r1,%r1}, {%r1,%r1,%r1,%r1}, {%f1,%f2,%f3,%f4};",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r1,%r1,%r1}, {%r1,%r1}, {%f1,%f2,%f3,%f4};",
        "setmaxnreg.add.sync.aligned.u32 40;",
        "griddepcontrol.stop;",
        "cvta;",
        "setmaxnreg 40;",
        "griddepcontrol;",
        "atom %r2, [%rd1], 1;",
        "red;",
        "mbarrier;",
        "mbarrier.init;",
    ] {
        refused(opcode, &format!("no opcode {}", opcode.split([' ', ';']).next().unwrap()));
    }
    refused("mov.b16 %rs1, {%rs2, %rs3};", "mov.b16 of parts");
    refused("atom.global.cas.b32 %r2, [%rd1], 1;", "with 3 operands");
    let list = (0..4).map(|i| format!("%f{i}")).collect::<Vec<_>>().join(",");
    let product = |shape: &str, types: &str, flags: &str| {
        format!(
            "wgmma.mma_async.sync.aligned.{shape}.f32.{types} {{{list}}}, %rd1, %rd2, %p1, {flags};"
        )
    };
    assert!(program(&kernel(&product("m64n8k16", "bf16.bf16", "1, -1, 0, 1"))).is_ok());
    assert!(program(&kernel(&product("m64n8k32", "e4m3.e5m2", "1, 1"))).is_ok());
    for (shape, types) in [
        ("m64n8k32", "bf16.bf16"),
        ("m64n8k8", "bf16.bf16"),
        ("m64n9k16", "bf16.bf16"),
        ("m64n8k16", "f16.bf16"),
        ("m64n8k16", "bf16.e4m3"),
    ] {
        refused(&product(shape, types, "1, 1, 0, 0"), "no opcode wgmma");
    }
    refused(&product("m64n8k32", "e4m3.e4m3", "1, 1, 0, 0"), "with 8 operands");
    refused(&product("m64n8k16", "bf16.bf16", "1, 2, 0, 0"), "with [1, 2, 0, 0]");
}

/// A file that ends early, or lacks a word, is refused or read, and nothing panics.
#[test]
fn files_that_are_cut_off_are_refused() {
    let whole = kernel(EVERYTHING);
    assert!(program(&whole).is_ok(), "{:?}", program(&whole).err());
    let is_boundary = |at: &usize| {
        let before = whole.as_bytes()[at - 1];
        !(before.is_ascii_alphanumeric() && whole.as_bytes()[*at].is_ascii_alphanumeric())
    };
    let ends: Vec<usize> = (1..whole.len()).filter(is_boundary).collect();
    for end in &ends {
        let _ = program(&whole[..*end]);
    }
    for pair in ends.windows(2) {
        let _ = program(&format!("{}{}", &whole[..pair[0]], &whole[pair[1]..]));
    }
    let header = "k.ptx:5: the file ends before the kernel's body";
    assert_eq!(program(&whole[..whole.find('{').unwrap()]).err().unwrap(), header);
    for (from, to) in [
        (".align 8", ".align 0"),
        (".align 8", ".align 3"),
        ("[16]", "[4294967295]"),
        ("<200>", "<4000000000>"),
    ] {
        assert!(program(&whole.replacen(from, to, 1)).is_err(), "{to}");
    }
}

/// A kernel with an opcode of each kind.
const EVERYTHING: &str = "\
.loc 1 2 3, function_name $L__info, inlined_at 4 5 6\n\
@!%p1 bra $END;\n\
mov.b64 %rd3, {%r1, %r2};\nmov.b32 {%rs1, %rs2}, %r1;\ncvta.param.u64 %rd4, %rd1;\n\
ld.global.nc.v2.u32 {%r3, %r4}, [%rd1+8];\nst.shared.v2.b16 [smem], {%rs1, %rs2};\n\
atom.acq_rel.gpu.global.add.u32 %r5, [%rd1], 1;\nred.relaxed.cta.shared.max.s32 [%r5], %r4;\n\
bar.sync 0;\nbarrier.cta.arrive 1, 64;\nbar.warp.sync -1;\n\
shfl.sync.idx.b32 %r6|%p2, %r1, 3, 31, -1;\nvote.sync.ballot.b32 %r7, %p2, -1;\nelect.sync _|%p3, -1;\n\
ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r1, %r2}, [%r3];\n\
stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r3], {%r1};\nmovmatrix.sync.aligned.m8n8.trans.b16 %r1, %r2;\n\
mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2}, {%r3}, {%f1,%f2,%f3,%f4};\n\
cp.async.cg.shared.global.L2::128B [%r1], [%rd1], 16, %r2;\ncp.async.commit_group;\ncp.async.wait_group 1;\n\
cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%r1];\n\
mbarrier.init.shared::cta.b64 [%r1], 1;\nmbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 16;\n\
{\n.reg .pred p;\nL:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%r1], 0;\n@!p bra L;\n}\n\
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1], %r2, [%r3];\n\
cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%rd1, {%r1, %r2}], [%r3];\n\
cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;\nfence.proxy.async.shared::cta;\n\
wgmma.fence.sync.aligned;\n\
wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4}, %rd1, %p1, 1, -1, 1;\n\
wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n\
setmaxnreg.inc.sync.aligned.u32 40;\ngriddepcontrol.wait;\n\
bfi.b32 %r1, %r2, %r3, 4, 5;\nselp.f32 %f1, 0f3F800000, %f2, %p1;\nmad.wide.s32 %rd1, %r1, -3, %rd2;\n\
$END:\n";

#[test]
fn numbers_are_read_as_they_are_written() {
    let body = format!(
        "mov.u32 %r2, -1;\nadd.s32 %r2, %r2, 0x10U;\nmov.f32 %f1, 0f3F800000;\nmov.b32 %r3, %f1;\nadd.s32 %r2, %r2, %r3;\n{}",
        out("%r2")
    );
    assert_eq!(result(&body, &[])[0], 0x3f80_000f);
}

#[test]
fn scopes_of_assembly_have_names_of_their_own() {
    let scope = "{\n.reg .pred p;\n.reg .b32 t;\nsetp.ne.u32 p, %r1, 0;\nmov.u32 t, 7;\n@p bra L;\nmov.u32 t, 9;\nL:\nadd.s32 %r2, %r2, t;\n}\n";
    let body = format!("mov.u32 %r2, 0;\n{scope}{scope}{}", out("%r2"));
    let got = result(&body, &[]);
    assert_eq!(got[..3], [18, 14, 14]);
}

#[test]
fn unwritten_registers_are_reported_once_an_instruction_is_executed() {
    let ran = run(&format!("add.s32 %r2, %r1, %r7;\n{}", out("%r2")), &[], &Setup::default());
    assert!(
        ran.reports[0].contains("add.s32 reads a register that was not written"),
        "{:?}",
        ran.reports
    );
    // Written by some lanes only.
    let body = format!(
        "setp.lt.u32 %p1, %r1, 5;\n@%p1 mov.u32 %r2, 1;\nadd.s32 %r3, %r2, 1;\n{}",
        out("%r3")
    );
    let ran = run(&body, &[], &Setup::default());
    assert!(ran.reports[0].contains("thread 5 "), "{:?}", ran.reports);
}

#[test]
fn misaligned_and_outside_accesses_end_the_block() {
    assert!(
        fault(
            "mov.u32 %r2, smem;\nld.shared.v4.u32 {%r3,%r4,%r5,%r6}, [%r2+8];",
            &Setup::default()
        )
        .contains("16 bytes is misaligned at 0x408")
    );
    assert!(
        fault("mov.u32 %r2, smem;\nld.shared.u32 %r3, [%r2+65536];", &Setup::default())
            .contains("outside")
    );
    assert!(
        fault("ld.param.u64 %rd3, [k_param_0+16];", &Setup::default())
            .contains("parameter 16 of 16 bytes")
    );
    for (load, what) in [
        ("ld.param.v2.u32 {%r2,%r3}, [k_param_0+12];", "8 bytes is misaligned"),
        ("ld.param.v4.u32 {%r2,%r3,%r4,%r5}, [k_param_0+8];", "16 bytes is misaligned"),
        ("ld.param.v4.u32 {%r2,%r3,%r4,%r5}, [k_param_0+16];", "parameter 16 of 16 bytes"),
    ] {
        let said = fault(load, &Setup::default());
        assert!(said.contains(what), "{said}");
    }
}

#[test]
fn signs_are_continued_as_far_as_the_register_goes() {
    let input = [0xffff_8081];
    for (load, expected) in [
        ("ld.global.s8 %rs1, [%rd1];\nmov.b32 %r3, {%rs1, %rs1};\n", 0xff81_ff81),
        ("ld.global.s8 %rs1, [%rd1];\ncvt.u32.u16 %r3, %rs1;\n", 0xff81),
        ("ld.global.s16 %rs1, [%rd1];\ncvt.u32.u16 %r3, %rs1;\n", 0x8081),
        ("ld.global.s8 %r3, [%rd1];\n", 0xffff_ff81),
        ("ld.global.u8 %r3, [%rd1];\n", 0x81),
        (
            "ld.global.s16 %rd3, [%rd1];\nshr.u64 %rd3, %rd3, 8;\ncvt.u32.u64 %r3, %rd3;\n",
            0xffff_ff80,
        ),
    ] {
        assert_eq!(result(&format!("{load}{}", out("%r3")), &input)[0], expected, "{load}");
    }
}
