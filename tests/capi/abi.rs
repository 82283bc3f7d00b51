//! Types, sizes, offsets, values and prototypes: what a compiled program relies on.

use std::fmt::Write;
use std::fs;
use std::process::Command;

use super::build::{program, root, run, scratch};
use super::generic::initialised;
use super::parse::{Function, Header, header, text};

/// The size that a struct had first, below which its initialiser writes nothing: that of the oldest
/// programs.
const PRINT_FIRST: &str = r#"
#define PRINT_FIRST(type, init)                         \
    do {                                                \
        type value;                                     \
        size_t size = 0;                                \
        do {                                            \
            value.struct_size = 0;                      \
            init(&value, ++size);                       \
        } while (value.struct_size != size);            \
        printf("first " #type ", %zu bytes\n", size);   \
    } while (0)
"#;

/// A program that prints the ABI as the compiler sees it.
fn printer(header: &Header) -> String {
    let mut c = String::from("#include <inflight.h>\n#include <stddef.h>\n#include <stdio.h>\n");
    c.push_str("#define ALIGNED(type) offsetof(struct { char c; type t; }, t)\n");
    c.push_str("#define END(type, field) (offsetof(type, field) + sizeof(((type *)0)->field))\n");
    c.push_str(PRINT_FIRST);
    c.push_str("int main(void) {\n");
    let mut out = |line: String| {
        writeln!(c, "    {line}").expect("a String takes all");
    };
    for (name, _) in &header.constants {
        out(format!("printf(\"constant {name} = %llu\\n\", (unsigned long long)({name}));"));
    }
    for (name, values) in &header.enums {
        out(format!("printf(\"enum {name}, %zu bytes\\n\", sizeof({name}));"));
        for (value, _) in values {
            out(format!("printf(\"    {value} = %d\\n\", (int){value});"));
        }
    }
    for (name, fields) in &header.structs {
        let sizes = format!("sizeof({name}), ALIGNED({name})");
        out(format!("printf(\"struct {name}, %zu bytes, aligned to %zu\\n\", {sizes});"));
        for field in fields {
            let (of, field) = (&field.of, &field.name);
            let range = format!("offsetof({name}, {field}), END({name}, {field})");
            out(format!("printf(\"    %zu..%zu {field}: {of}\\n\", {range});"));
        }
    }
    for name in &header.opaque {
        out(format!("puts(\"opaque {name}\");"));
    }
    for declaration in &header.typedefs {
        out(format!("puts(\"{declaration}\");"));
    }
    for function in &header.functions {
        out(format!("puts(\"function {}\");", prototype(function)));
    }
    for function in &header.functions {
        if let Some(of) = initialised(function) {
            out(format!("PRINT_FIRST({of}, {});", function.name));
        }
    }
    c + "    return 0;\n}\n"
}

fn prototype(function: &Function) -> String {
    let params: Vec<_> = function.params.iter().map(|p| format!("{}: {}", p.name, p.of)).collect();
    format!("{}({}) -> {}", function.name, params.join(", "), function.returns)
}

/// Lines at the margin, each with the indented ones that follow it.
fn blocks(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut blocks: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in text.lines() {
        match blocks.last_mut() {
            Some((_, inner)) if line.starts_with(' ') => inner.push(line),
            _ => blocks.push((line, Vec::new())),
        }
    }
    blocks
}

/// What a program compiled before would miss, or find elsewhere.
fn broken(before: &str, after: &str) -> Vec<String> {
    let after = blocks(after);
    let mut broken = Vec::new();
    for (head, inner) in blocks(before) {
        // Structs with a size grow at the end, enums and everything else by more of them.
        let name = head.split(',').next().unwrap_or(head);
        let grows = head.starts_with("struct ") || head.starts_with("enum ");
        let version = head.starts_with("constant INFLIGHT_VERSION_");
        let found = after.iter().find(|(now, _)| match grows {
            true => now.split(',').next() == Some(name),
            false => *now == head,
        });
        match found {
            None if version => {}
            None => broken.push(head.to_owned()),
            Some((now, fields)) if head.starts_with("struct ") => {
                // One that does not say its size stands in arrays, and in other structs.
                let has_size = inner.first().is_some_and(|line| line.contains(" struct_size: "));
                if !fields.starts_with(&inner) || !has_size && *now != head {
                    broken.push(format!("{name}: its fields are not those it had, and more"));
                }
            }
            Some((_, now)) => {
                broken.extend(inner.iter().filter(|l| !now.contains(l)).map(|l| l.to_string()));
            }
        }
    }
    broken
}

#[test]
fn is_what_programs_were_compiled_for() {
    if cfg!(not(target_pointer_width = "64")) {
        println!("skipped: the layout on record is that of 64 bits");
        return;
    }
    let source = scratch("abi").join("print.c");
    fs::write(&source, printer(&header(&text()))).expect("the target directory is writable");
    let printed = run(&mut Command::new(program("abi", &source, &[]))).stdout;
    let now = String::from_utf8(printed).expect("the header is ASCII");
    let path = root().join("tests/data/abi.txt");
    let committed = fs::read_to_string(&path).unwrap_or_default();
    if let Ok(how) = std::env::var("INFLIGHT_REGENERATE") {
        let broken = broken(&committed, &now);
        assert!(broken.is_empty() || how == "breaking", "programs would break: {broken:#?}");
        fs::write(&path, &now).expect("the record is writable");
        return;
    }
    let line = committed.lines().zip(now.lines()).find(|(a, b)| a != b);
    assert!(
        committed == now,
        "the ABI differs from tests/data/abi.txt, first in {line:?}; broken by it: {:#?}: \
         run INFLIGHT_REGENERATE=1 cargo test --test capi if it has only grown",
        broken(&committed, &now)
    );
}

#[test]
fn growth_at_the_end_is_told_from_a_break() {
    let before = "constant A = 1\nstruct s, 16 bytes\n    0..8 struct_size: size_t\n    8..16 a: \
                  uint64_t\nstruct row, 4 bytes\n    0..4 b: int\nenum e, 4 bytes\n    X = 1\nfunction \
                  f(a: int) -> void\nfirst s, 16 bytes\n";
    let grown =
        before.replace("    8..16 a: uint64_t\n", "    8..16 a: uint64_t\n    16..24 b: x\n");
    let grown = grown
        .replace("struct s, 16 bytes", "struct s, 24 bytes")
        .replace("    X = 1", "    X = 1\n    Y = 2");
    assert_eq!(broken(before, &(grown + "function g() -> void\n")), Vec::<String>::new());
    for (was, is) in [
        ("A = 1", "A = 2"),
        ("8..16 a", "12..16 a"),
        ("    8..16 a: uint64_t\n", ""),
        ("X = 1", "X = 2"),
        ("f(a: int)", "f(a: long)"),
        // Old programs have rows of 4 bytes, and structs of 16.
        ("row, 4 bytes\n    0..4 b: int\n", "row, 8 bytes\n    0..4 b: int\n    4..8 c: int\n"),
        ("first s, 16 bytes", "first s, 24 bytes"),
    ] {
        assert_eq!(broken(before, &before.replace(was, is)).len(), 1, "{was} -> {is}");
    }
}
