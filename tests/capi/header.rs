//! The header by itself, and against what the library exports.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use super::build::{STRICT, compiler, library_dir, program, run, scratch};
use super::parse::{code, header, text};

#[test]
fn compiles_alone_and_twice_in_every_language() {
    let dir = scratch("header");
    // Only what the header itself includes, and itself again; two such files in one program.
    let unit = "#include <inflight.h>\n#include \"inflight.h\"\n";
    for (variable, standard, extension) in [
        ("CC", "c99", "c"),
        ("CC", "c11", "c"),
        ("CC", "c17", "c"),
        ("CXX", "c++17", "cc"),
        ("CXX", "c++20", "cc"),
    ] {
        let name = standard.replace('+', "p");
        let sources = ["a", "b"].map(|part| dir.join(format!("{name}_{part}.{extension}")));
        for (source, function) in sources.iter().zip(["int other(void);", "int main(void) "]) {
            let body = match function.ends_with(' ') {
                true => "int other(void);\nint main(void) { return other(); }\n",
                false => {
                    "int other(void);\nint other(void) {\n    return \
                          inflight_version_number() != INFLIGHT_VERSION_NUMBER;\n}\n"
                }
            };
            fs::write(source, format!("{unit}{body}")).expect("the target directory is writable");
        }
        let library = library_dir();
        let mut compile = compiler(variable);
        compile.arg(format!("-std={standard}")).args(STRICT).args(&sources);
        compile.arg("-L").arg(&library).arg("-linflight").arg("-o").arg(dir.join(&name));
        run(compile.arg(format!("-Wl,-rpath,{}", library.display())));
        run(&mut Command::new(dir.join(&name)));
    }
}

#[test]
fn is_mostly_manual() {
    let text = text();
    let lines = text.lines().filter(|line| !line.trim().is_empty()).count();
    let code = code(&text).lines().filter(|line| !line.trim().is_empty()).count();
    let share = 100 * (lines - code) / lines;
    println!("{lines} lines, {share} % of them comment");
    assert!(share > 55, "{share} % of the header are comment");
}

#[test]
fn versions_are_those_of_the_library() {
    let source = scratch("header").join("version.c");
    let body = r#"
        #include <inflight.h>
        #include <stdio.h>
        #include <string.h>
        int main(void) {
            char text[32];
            snprintf(text, sizeof text, "%d.%d.%d", INFLIGHT_VERSION_MAJOR, INFLIGHT_VERSION_MINOR,
                     INFLIGHT_VERSION_PATCH);
            uint32_t packed = INFLIGHT_VERSION_MAJOR * 1000000u + INFLIGHT_VERSION_MINOR * 1000u +
                              INFLIGHT_VERSION_PATCH;
            puts(text);
            return strcmp(text, inflight_version_string()) != 0 ||
                   packed != INFLIGHT_VERSION_NUMBER || packed != inflight_version_number() ||
                   inflight_abi_version() != INFLIGHT_ABI_VERSION;
        }"#;
    fs::write(&source, body).expect("the target directory is writable");
    let output = run(&mut Command::new(program("version", &source, &[])));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_library_exports_the_functions_of_the_header_and_nothing_else() {
    let header = header();
    let declared: BTreeSet<&str> = header.functions.iter().map(|f| f.name.as_str()).collect();
    let library = library_dir().join("libinflight.so");
    let listed = run(Command::new("nm").args(["-D", "--defined-only"]).arg(library)).stdout;
    let listed = String::from_utf8(listed).expect("names are ASCII");
    let exported: BTreeSet<&str> =
        listed.lines().filter_map(|line| line.split_whitespace().last()).collect();
    println!("{} functions", declared.len());
    assert_eq!(exported, declared);
}
