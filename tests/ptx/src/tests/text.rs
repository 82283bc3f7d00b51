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
}
