//! Compiles the kernels of `csrc/` and the emulator into two libraries that look like libcuda.

use std::path::{Path, PathBuf};
use std::process::Command;

const OLDEST_GCC: u32 = 10;

fn main() {
    let reason = match build() {
        Ok(()) => String::new(),
        Err(reason) => reason,
    };
    println!("cargo::rustc-env=SIMT_NOT_BUILT={}", reason.replace('\n', " "));
}

fn build() -> Result<(), String> {
    let here = PathBuf::from(var("CARGO_MANIFEST_DIR"));
    let root = here.join("../..").canonicalize().map_err(|e| e.to_string())?;
    let csrc = root.join("csrc");
    for dir in [here.join("src"), here.join("kernels"), here.join("checks"), csrc.clone()] {
        for file in files(&dir) {
            println!("cargo::rerun-if-changed={}", file.display());
        }
        println!("cargo::rerun-if-changed={}", dir.display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=INFLIGHT_SIMT_LIBRARY");
    if std::env::var_os("INFLIGHT_SIMT_LIBRARY").is_some() {
        return Err("INFLIGHT_SIMT_LIBRARY was to name a library to open, built elsewhere".into());
    }
    if (var("CARGO_CFG_TARGET_OS"), var("CARGO_CFG_TARGET_ARCH"))
        != ("linux".into(), "x86_64".into())
    {
        return Err("kernels are emulated on Linux x86-64 only".into());
    }
    let compiler = compiler()?;
    let emulator = with_extension(files(&here.join("src")), "cpp");
    let mut kernels = with_extension(files(&csrc), "cu");
    kernels.extend(with_extension(files(&here.join("kernels")), "cu"));
    for checking in [false, true] {
        let name = if checking { "checking" } else { "fast" };
        let out = PathBuf::from(var("OUT_DIR")).join(name);
        let mut objects = compile(&emulator, &out.join("emulator"), checking, |build| {
            build.opt_level(3);
        })?;
        objects.extend(compile(&kernels, &out.join("kernels"), checking, |build| {
            build.opt_level(2).include(&csrc).include(here.join("src"));
            if checking {
                build.flag("-fsanitize=thread");
                build.flag_if_supported("--param=tsan-instrument-func-entry-exit=0");
            }
        })?);
        let library = out.join("libcuda.so");
        let shared = ["-shared", "-Wl,-soname,libcuda.so", "-Wl,-Bsymbolic", "-Wl,-z,defs"];
        link(compiler.path(), &objects, &library, &shared)?;
        println!("cargo::rustc-env=SIMT_{}={}", name.to_uppercase(), library.display());
        if !checking {
            // A program of its own: it calls functions of the kernels, which no driver offers.
            let check = [here.join("checks/cache.cpp")];
            objects.extend(compile(&check, &out.join("checks"), false, |build| {
                build.opt_level(2).include(&csrc).include(here.join("src"));
            })?);
            let program = out.join("check-cache");
            link(compiler.path(), &objects, &program, &[])?;
            println!("cargo::rustc-env=SIMT_CHECK_CACHE={}", program.display());
        }
    }
    Ok(())
}

fn compiler() -> Result<cc::Tool, String> {
    let mut build = cc::Build::new();
    build.cpp(true).cargo_metadata(false);
    let tool = build.try_get_compiler().map_err(|e| format!("no C++ compiler: {e}"))?;
    let version = Command::new(tool.path())
        .args(["-dumpversion"])
        .output()
        .map_err(|e| format!("no C++ compiler: {} does not run: {e}", tool.path().display()))?;
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    let major = version.split('.').next().and_then(|v| v.parse().ok()).unwrap_or(0);
    if !tool.is_like_gnu() || major < OLDEST_GCC {
        return Err(format!(
            "g++ {OLDEST_GCC} or newer is needed, found {} {version}",
            tool.path().display()
        ));
    }
    Ok(tool)
}

fn compile(
    sources: &[PathBuf],
    out: &Path,
    checking: bool,
    options: impl FnOnce(&mut cc::Build),
) -> Result<Vec<PathBuf>, String> {
    if sources.is_empty() {
        return Ok(Vec::new());
    }
    std::fs::create_dir_all(out).map_err(|e| format!("{}: {e}", out.display()))?;
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++20")
        .pic(true)
        .debug(false)
        .cargo_metadata(false)
        .warnings(false)
        .out_dir(out)
        // Lines for reports, without the bulk of variables.
        .flag("-g1")
        .flag("-fvisibility=hidden")
        .flag("-fno-strict-aliasing")
        .flag("-Wno-unknown-pragmas")
        // The extension .cu means nothing to a host compiler.
        .flag("-xc++")
        .files(sources);
    if checking {
        build.define("SIMT_CHECK", "1");
    }
    options(&mut build);
    build.try_compile_intermediates().map_err(|e| e.to_string())
}

/// The soname is what a later `dlopen("libcuda.so")` of this process is satisfied by.
fn link(compiler: &Path, objects: &[PathBuf], out: &Path, flags: &[&str]) -> Result<(), String> {
    let linked = Command::new(compiler)
        .args(flags)
        .arg("-o")
        .arg(out)
        .args(objects)
        .args(["-ldl", "-lpthread"])
        .output()
        .map_err(|e| e.to_string())?;
    match linked.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&linked.stderr).into_owned()),
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn with_extension(files: Vec<PathBuf>, extension: &str) -> Vec<PathBuf> {
    files.into_iter().filter(|f| f.extension().is_some_and(|e| e == extension)).collect()
}

fn var(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}
