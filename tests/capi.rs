//! Programs in C, compiled against the header and linked with the library.
#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::Command;

#[test]
fn a_step_loop_in_c() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Beside the tests, Cargo puts the shared library that they are built with.
    let test = std::env::current_exe().expect("a program");
    let libraries = test.parent().expect("it is in a directory");
    let program = libraries.join("capi-attention");
    let run = |command: &mut Command| {
        let output = command.output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{command:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    run(Command::new("cc")
        .args(["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g", "-I"])
        .arg(root.join("include"))
        .arg(root.join("tests/capi/attention.c"))
        .arg("-o")
        .arg(&program)
        .arg("-L")
        .arg(libraries)
        .args(["-linflight", "-lm"])
        .arg(format!("-Wl,-rpath,{}", libraries.display())));
    assert_eq!(run(&mut Command::new(&program)), "12 rows\n");
}
