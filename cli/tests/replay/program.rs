//! Running the program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The program with these arguments, in an empty environment.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inflight"));
    command.env_clear().args(args).stdin(Stdio::null());
    command
}

/// Runs the program; whatever the arguments, it neither panics nor is killed nor paints.
pub(crate) fn inflight(args: &[&str]) -> Ran {
    finished(args, command(args).output().expect("the program starts"))
}

pub(crate) fn finished(args: &[&str], output: Output) -> Ran {
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    let code = output.status.code().unwrap_or(-1);
    let all = format!("inflight {}: {code}\n{stdout}\n{stderr}", args.join(" "));
    assert!(!all.contains("panicked") && !all.contains("RUST_BACKTRACE"), "{all}");
    assert!([0, 1, 2].contains(&code), "{all}");
    assert!(!all.contains('\x1b'), "escape codes: {all}");
    Ran { code, stdout, stderr }
}

/// `inflight replay` with these arguments, which must do what it is asked and say no more.
pub(crate) fn replay(args: &[&str]) -> String {
    let ran = inflight(&[&["replay"], args].concat());
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{args:?}");
    ran.stdout
}

/// The same where every request is refused, which it says.
pub(crate) fn refused(scratch: &Scratch, args: &[&str]) -> Value {
    let json = scratch.path("figures.json");
    let ran = inflight(&[&["replay"], args, &["--json", &json]].concat());
    assert_eq!(ran.code, 0, "{args:?}");
    for said in [": every request was refused (too_long)\n", ": raise --num-blocks to "] {
        assert!(ran.stderr.contains(said), "{said}: {}", ran.stderr);
    }
    serde_json::from_str(&scratch.read("figures.json")).expect("JSON")
}

/// The JSON document of a replay.
pub(crate) fn figures(scratch: &Scratch, args: &[&str]) -> Value {
    let json = scratch.path("figures.json");
    replay(&[args, &["--json", &json]].concat());
    serde_json::from_str(&scratch.read("figures.json")).expect("JSON")
}

/// One of `tests/data/traces`.
pub(crate) fn trace(name: &str) -> String {
    shown(&repository().join("tests/data/traces").join(name))
}

pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the program is part of a workspace")
}

/// A directory of one test.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(test: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
        if path.exists() {
            fs::remove_dir_all(&path).expect("an old directory can go");
        }
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        shown(&self.0.join(name))
    }

    /// Writes a file and says where it is.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.0.join(name), content).expect("a file");
        self.path(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).expect("a file")
    }
}

fn shown(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}
