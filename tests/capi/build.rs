//! Compiling programs in C against the library under test, and running them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub(crate) const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];
pub(crate) const SANITIZED: [&str; 3] =
    ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"];

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where `libinflight.so` is: that which was built with this test, beside it.
pub(crate) fn library_dir() -> PathBuf {
    if let Some(given) = std::env::var_os("INFLIGHT_LIBRARY_DIR") {
        return given.into();
    }
    let exe = std::env::current_exe().expect("a test has a path");
    exe.parent().expect("it lies in a directory").to_owned()
}

/// A directory for what a test writes.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("capi").join(name);
    fs::create_dir_all(&path).expect("the target directory is writable");
    path
}

/// `CC` or `CXX`, which may be of several words, or the system's.
pub(crate) fn compiler(variable: &str) -> Command {
    let fallback = if variable == "CXX" { "c++" } else { "cc" };
    let words = std::env::var(variable).unwrap_or_else(|_| fallback.to_owned());
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or(fallback));
    command.args(words).arg("-I").arg(root().join("include"));
    command
}

/// Runs a command to its end; its failure is the test's, with all that it said.
pub(crate) fn run(command: &mut Command) -> Output {
    // Cargo's own names directories where the library of an earlier build may lie.
    command.env("LD_LIBRARY_PATH", library_dir());
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Compiles a program against the library. Its source is a path below `tests/capi` or anywhere.
pub(crate) fn program(name: &str, source: &Path, flags: &[&str]) -> PathBuf {
    let out = scratch("bin").join(name);
    let library = library_dir();
    let mut compile = compiler("CC");
    compile.args(["-std=c11", "-g", "-O1", "-D_GNU_SOURCE", "-pthread"]).args(STRICT).args(flags);
    compile.arg("-I").arg(root().join("tests/capi")).arg(root().join("tests/capi").join(source));
    compile.arg("-L").arg(&library).args(["-linflight", "-lm"]).arg("-o").arg(&out);
    compile.arg(format!("-Wl,-rpath,{}", library.display()));
    run(&mut compile);
    out
}
