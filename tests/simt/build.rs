//! Compiles the kernels of `csrc/` and the emulator into libraries that look like libcuda.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

#[path = "../../build/cost.rs"]
mod cost;
#[path = "../../build/table.rs"]
mod table;

const OLDEST_GCC: u32 = 10;

fn main() -> Result<(), String> {
    let reason = match compiler() {
        Ok(compiler) => {
            build(&compiler)?;
            String::new()
        }
        Err(reason) => reason,
    };
    println!("cargo::rustc-env=SIMT_NOT_BUILT={}", reason.replace('\n', " "));
    Ok(())
}

fn build(compiler: &cc::Tool) -> Result<(), String> {
    let here = PathBuf::from(var("CARGO_MANIFEST_DIR"));
    let root = here.join("../..").canonicalize().map_err(|e| e.to_string())?;
    let csrc = root.join("csrc");
    let mut all = vec![here.join("build.rs"), root.join("build/table.rs")];
    let executor = root.join("tests/ptx/src");
    for dir in [
        here.join("src"),
        here.join("kernels"),
        here.join("checks"),
        csrc.clone(),
        executor.clone(),
    ] {
        all.extend(files(&dir));
        println!("cargo::rerun-if-changed={}", dir.display());
    }
    for file in &all {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    let emulator = with_extension(files(&here.join("src")), "cpp");
    let mut kernels = with_extension(files(&csrc), "cu");
    kernels.extend(with_extension(files(&here.join("kernels")), "cu"));
    let ptx = root.join("target/ptx");
    let sources = Sources { all, csrc, here, emulator, kernels, executor, ptx };
    let built = sources.built(compiler)?;
    for (name, file) in
        [("FAST", FAST), ("CHECKING", CHECKING), ("PTX", PTX), ("CHECK_CACHE", CHECK_CACHE)]
    {
        println!("cargo::rustc-env=SIMT_{name}={}", built.join(file).display());
    }
    for version in OLDER {
        println!("cargo::rustc-env=SIMT_FAST_{version}={}", built.join(older(version)).display());
    }
    Ok(())
}

const FAST: &str = "fast/libcuda.so";
const CHECKING: &str = "checking/libcuda.so";
const PTX: &str = "ptx/libcuda.so";
const CHECK_CACHE: &str = "check-cache";

/// Drivers before that of the libraries above, which is 13.0: the fast library again, without what
/// came after them.
const OLDER: [u32; 3] = [12_030, 12_040, 12_080];
/// The driver's functions that are emulated, and that 12.0 did not have.
const NEWER: [(&str, u32); 2] = [("cuFuncLoad", 12_040), ("cuEventElapsedTime_v2", 12_080)];

fn older(version: u32) -> String {
    format!("fast-{version}/libcuda.so")
}

struct Sources {
    /// Everything that the results depend on.
    all: Vec<PathBuf>,
    csrc: PathBuf,
    here: PathBuf,
    emulator: Vec<PathBuf>,
    kernels: Vec<PathBuf>,
    /// What executes PTX, in Rust, and where PTX is looked for.
    executor: PathBuf,
    ptx: PathBuf,
}

impl Sources {
    /// The folder with what is built of them. Cargo runs this script once for every choice of
    /// packages and features; it takes minutes, so all in a target folder share the results.
    fn built(&self, compiler: &cc::Tool) -> Result<PathBuf, String> {
        let out = PathBuf::from(var("OUT_DIR"));
        // OUT_DIR is target/PROFILE/build/simt-HASH/out.
        let shared = out.ancestors().nth(4).unwrap_or(&out).join("simt");
        let failed = |e: std::io::Error| format!("{}: {e}", shared.display());
        fs::create_dir_all(&shared).map_err(failed)?;
        let lock = fs::File::create(shared.join("lock")).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let built = shared.join(format!("{:016x}", self.key(compiler).map_err(failed)?));
        let is_built = built.join("built");
        // Where it has been removed, the script is to run again.
        println!("cargo::rerun-if-changed={}", is_built.display());
        if is_built.exists() {
            return Ok(built);
        }
        self.build(compiler, &built)?;
        self.write_cost(&built).map_err(failed)?;
        // Cargo takes a file for changed that is newer than the script's start.
        let stamp = fs::File::create(&is_built).map_err(failed)?;
        stamp
            .set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30))
            .map_err(failed)?;
        Ok(built)
    }

    /// What the compilers took, in CPU seconds, and the bytes of the libraries, for .ci/budget.
    fn write_cost(&self, built: &Path) -> std::io::Result<()> {
        let mut bytes = 0;
        for library in [FAST, CHECKING, PTX] {
            bytes += fs::metadata(built.join(library))?.len();
        }
        fs::write(built.join("cost"), format!("{:.1} {bytes}\n", cost::children_seconds()))
    }

    /// Differs where anything does that the results depend on.
    fn key(&self, compiler: &cc::Tool) -> std::io::Result<u64> {
        let mut key = DefaultHasher::new();
        (compiler.path(), version(compiler), var("CXXFLAGS"), &self.ptx).hash(&mut key);
        (said_by_rustc(&["-vV"]), said_by_rustc(&["--print", "cfg", NATIVE])).hash(&mut key);
        for file in &self.all {
            (file, fs::read(file)?).hash(&mut key);
        }
        Ok(key.finish())
    }

    fn build(&self, compiler: &cc::Tool, built: &Path) -> Result<(), String> {
        let Self { csrc, here, emulator, kernels, .. } = self;
        let src = here.join("src");
        let mut kernels = kernels.clone();
        kernels.extend(table::Table::read(csrc).write_instances(&built.join("kernels")));
        for (checking, library) in [(false, FAST), (true, CHECKING)] {
            let library = built.join(library);
            let objects_in = library.with_extension("objects");
            let mut objects = compile(emulator, &objects_in.join("emulator"), checking, |build| {
                build.opt_level(3);
            })?;
            let compiled = compile(&kernels, &objects_in.join("kernels"), checking, |build| {
                // Most of their time is spent in the emulator: more costs minutes and saves seconds.
                build.opt_level(1).include(csrc).include(&src);
                if checking {
                    build.flag("-fsanitize=thread");
                    build.flag_if_supported("--param=tsan-instrument-func-entry-exit=0");
                }
            })?;
            objects.extend(compiled.iter().cloned());
            link(compiler.path(), &objects, &library, &SHARED)?;
            if !checking {
                self.link_ptx(compiler.path(), &compiled, built)?;
                for version in OLDER {
                    let folder = objects_in.join(version.to_string());
                    let library = built.join(older(version));
                    link_older(compiler.path(), &objects, &folder, &library, version)?;
                }
                // A program of its own: it calls functions of the kernels, which no driver offers.
                let check = [here.join("checks/cache.cpp")];
                objects.extend(compile(&check, &objects_in.join("checks"), false, |build| {
                    build.opt_level(2).include(csrc).include(&src);
                })?);
                link(compiler.path(), &objects, &built.join(CHECK_CACHE), &[])?;
            }
            fs::remove_dir_all(&objects_in).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

impl Sources {
    /// The third library: the checker, kernels for their names and parameters alone, and the executor.
    fn link_ptx(&self, compiler: &Path, kernels: &[PathBuf], built: &Path) -> Result<(), String> {
        let library = built.join(PTX);
        let objects_in = library.with_extension("objects");
        let mut objects = compile(&self.emulator, &objects_in.join("emulator"), true, |build| {
            build.opt_level(3).define("SIMT_PTX", "1");
        })?;
        objects.extend_from_slice(kernels);
        let executor = objects_in.join("libptx.a");
        let ran = Command::new(var("RUSTC"))
            .args(["--crate-type", "staticlib", "--crate-name", "ptx", "--edition", "2024"])
            .args(["-Copt-level=3", NATIVE, "-Ccodegen-units=2"])
            .args(["--cfg", "emulated", "--cap-lints", "allow", "-o"])
            .args([executor.as_path(), &self.executor.join("lib.rs")])
            .env("PTX_FOLDER", &self.ptx)
            .output()
            .map_err(|e| format!("{}: {e}", var("RUSTC")))?;
        if !ran.status.success() {
            return Err(String::from_utf8_lossy(&ran.stderr).into_owned());
        }
        objects.push(executor);
        // What the executor calls, and Rust's own names, stay within the library.
        let mut flags = SHARED.to_vec();
        flags.extend(["-Wl,--exclude-libs,ALL", "-Wl,--gc-sections", "-Wl,--strip-debug"]);
        link(compiler, &objects, &library, &flags)?;
        fs::remove_dir_all(&objects_in).map_err(|e| e.to_string())
    }
}

/// The executor is for the processor that it is compiled on: what that has is in the key.
const NATIVE: &str = "-Ctarget-cpu=native";

fn said_by_rustc(arguments: &[&str]) -> String {
    let said = Command::new(var("RUSTC")).args(arguments).output();
    said.map_or_else(|_| String::new(), |said| String::from_utf8_lossy(&said.stdout).into_owned())
}

/// What to compile with; or why there is to be no emulator.
fn compiler() -> Result<cc::Tool, String> {
    for variable in ["INFLIGHT_SIMT_LIBRARY", "CXX", "CXXFLAGS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if std::env::var_os("INFLIGHT_SIMT_LIBRARY").is_some() {
        return Err("INFLIGHT_SIMT_LIBRARY was to name a library to open, built elsewhere".into());
    }
    if (var("CARGO_CFG_TARGET_OS"), var("CARGO_CFG_TARGET_ARCH"))
        != ("linux".into(), "x86_64".into())
    {
        return Err("kernels are emulated on Linux x86-64 only".into());
    }
    let mut build = cc::Build::new();
    build.cpp(true).cargo_metadata(false);
    let tool = build.try_get_compiler().map_err(|e| format!("no C++ compiler: {e}"))?;
    let version = version(&tool);
    let major = version.split('.').next().and_then(|v| v.parse().ok()).unwrap_or(0);
    if !tool.is_like_gnu() || major < OLDEST_GCC {
        return Err(format!(
            "g++ {OLDEST_GCC} or newer is needed, found {} {version}",
            tool.path().display()
        ));
    }
    Ok(tool)
}

/// What a compiler says of itself; empty where it does not run.
fn version(compiler: &cc::Tool) -> String {
    let said = Command::new(compiler.path()).arg("-dumpfullversion").output();
    said.map_or_else(
        |_| String::new(),
        |said| String::from_utf8_lossy(&said.stdout).trim().to_owned(),
    )
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
    fs::create_dir_all(out).map_err(|e| format!("{}: {e}", out.display()))?;
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

/// The same library as the driver of an older version: it says so, and lacks what is newer.
fn link_older(
    compiler: &Path,
    objects: &[PathBuf],
    folder: &Path,
    library: &Path,
    version: u32,
) -> Result<(), String> {
    for folder in [Some(folder), library.parent()].into_iter().flatten() {
        fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).map(|()| path).map_err(|e| format!("{name}: {e}"))
    };
    let hidden: String = NEWER
        .iter()
        .filter(|(_, since)| *since > version)
        .map(|(name, _)| format!(" {name};"))
        .collect();
    // A name comes before a pattern.
    let script = format!("{{ global: cu*; simt_*; local:{hidden} *; }};\n");
    let script = write("exports", &script)?;
    let offers =
        write("offers.cpp", &format!("extern \"C\" {{ int simt_offers = {version}; }}\n"))?;
    let mut objects = objects.to_vec();
    objects.extend(compile(&[offers], folder, false, |_| ())?);
    let script = format!("-Wl,--version-script={}", script.display());
    let mut flags = SHARED.to_vec();
    flags.push(&script);
    link(compiler, &objects, library, &flags)
}

const SHARED: [&str; 4] = ["-shared", "-Wl,-soname,libcuda.so", "-Wl,-Bsymbolic", "-Wl,-z,defs"];

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
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
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
