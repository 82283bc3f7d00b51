//! Finds nvcc and compiles each source to one fatbin.
//!
//! nvcc is called here and not by `cc`: that would compile several files as relocatable device
//! code, and unoptimised (`-G`) in a development build. `cc` says which host compiler there is.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::{fail, family};

/// Never asked of the GPU in this machine: what is built depends on what is set, nothing else.
const DEFAULT_ARCHS: &str = "80;90a";
/// Later architectures compile this at run time.
const PTX: &str = "80";

/// The oldest nvcc that is taken, and the oldest that compresses images for their size, in a way
/// that drivers of CUDA 12.4 read, and that knows Blackwell (sm_100 and up).
const OLDEST: Release = (12, 4);
const BLACKWELL: Release = (12, 8);

/// Major and minor version.
type Release = (u32, u32);

pub(crate) struct Nvcc {
    program: PathBuf,
    /// What it says of its version.
    version: String,
    release: Release,
    archs: Vec<String>,
    host_compiler: Option<PathBuf>,
    /// Flags beyond ours, for experiments.
    flags: Vec<String>,
}

impl Nvcc {
    pub(crate) fn find() -> Self {
        for name in [
            "NVCC",
            "CUDA_HOME",
            "CUDA_PATH",
            "PATH",
            "VIRTUAL_ENV",
            "NVCC_CCBIN",
            "NUM_JOBS",
            "INFLIGHT_CUDA_ARCHS",
            "INFLIGHT_NVCC_FLAGS",
            "INFLIGHT_CUDA_REPORT",
        ] {
            println!("cargo::rerun-if-env-changed={name}");
        }
        let (program, version) = find_program();
        let archs = env::var("INFLIGHT_CUDA_ARCHS").unwrap_or_else(|_| DEFAULT_ARCHS.to_owned());
        let flags = env::var("INFLIGHT_NVCC_FLAGS").unwrap_or_default();
        let flags = flags.split_whitespace().map(str::to_owned).collect();
        let found = Self::new(program, version, &archs, flags);
        Self { host_compiler: host_compiler(), ..found.unwrap_or_else(|why| fail(&why)) }
    }

    /// That which says this of its version, for these architectures; or why it is not taken.
    pub(crate) fn new(
        program: PathBuf,
        version: String,
        archs: &str,
        flags: Vec<String>,
    ) -> Result<Self, String> {
        let name = program.display();
        let Some(release) = release(&version) else {
            return Err(format!(
                "{name} does not say its version as nvcc does (`release 13.0`): set NVCC to an nvcc \
                 of CUDA 12.4 or later"
            ));
        };
        let (major, minor) = release;
        if release < OLDEST {
            return Err(format!(
                "{name} is of CUDA {major}.{minor}, and 12.4 is the oldest that compiles the \
                 kernels: set NVCC to a newer one, or let scripts/cuda-toolkit install it"
            ));
        }
        let archs: Vec<_> = archs.split([';', ',', ' ']).filter(|arch| !arch.is_empty()).collect();
        let number = |arch: &str| arch.trim_end_matches(['a', 'f']).parse::<u32>().ok();
        if archs.is_empty() || !archs.iter().all(|arch| number(arch).is_some()) {
            let why = "INFLIGHT_CUDA_ARCHS names architectures as nvcc does, e.g. `80;90a`";
            return Err(why.to_owned());
        }
        let blackwell = archs.iter().find(|arch| number(arch).is_some_and(|number| number >= 100));
        if let Some(arch) = blackwell.filter(|_| release < BLACKWELL) {
            return Err(format!(
                "INFLIGHT_CUDA_ARCHS has {arch}, which nvcc {major}.{minor} ({name}) does not know: \
                 leave it out, or set NVCC to an nvcc of CUDA 12.8 or later"
            ));
        }
        let archs = archs.into_iter().map(str::to_owned).collect();
        Ok(Self { program, version, release, archs, host_compiler: None, flags })
    }

    /// Its version, as CUDA counts: 13000 is 13.0.
    pub(crate) fn toolkit(&self) -> i32 {
        (self.release.0 * 1000 + self.release.1 * 10) as i32
    }

    /// `sm_80, sm_90a, PTX 8.0`
    pub(crate) fn built(&self) -> String {
        let mut built: Vec<_> = self.archs.iter().map(|arch| format!("sm_{arch}")).collect();
        let (major, minor) = PTX.split_at(PTX.len() - 1);
        built.push(format!("PTX {major}.{minor}"));
        built.join(", ")
    }

    /// The images, compiled where they are out of date, as many at once as Cargo allows.
    pub(crate) fn compile(&self, sources: &[PathBuf], out: &Path) -> Vec<Option<PathBuf>> {
        let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.compile_one(source, out);
            }
        };
        thread::scope(|scope| {
            for _ in 0..sources.len().min(jobs) {
                scope.spawn(work);
            }
        });
        let image = |source: &PathBuf| {
            let archs = !self.archs_of(source).is_empty();
            archs.then(|| out.join(format!("{}.fatbin", family(source))))
        };
        sources.iter().map(image).collect()
    }

    fn compile_one(&self, source: &Path, out: &Path) {
        let at = |extension: &str| out.join(format!("{}.{extension}", family(source)));
        let [image, deps, log, stamp] = ["fatbin", "d", "ptxas", "stamp"].map(at);
        let archs = self.archs_of(source);
        if archs.is_empty() {
            // The report reads it.
            fs::write(&log, "").expect("OUT_DIR is writable");
            return;
        }
        let mut command = Command::new(&self.program);
        command.args(["-fatbin", "-std=c++17", "-O3"]);
        // Lines make images several times as large, but for this compression.
        if self.release >= BLACKWELL {
            command.args(["-lineinfo", "--compress-mode=size"]);
        }
        command.args(["-Xptxas", "-v,-warn-spills,-warn-lmem-usage", "-I", "csrc", "-MD", "-MF"]);
        command.arg(&deps).args(&archs).args(&self.flags);
        if let Some(compiler) = &self.host_compiler {
            command.arg("-ccbin").arg(compiler);
        }
        command.arg(source).arg("-o").arg(&image);
        let command_line = format!("{}\n{command:?}", self.version);
        let seen = |deps: &Path| hash(&command_line, source, deps);
        let current = fs::read_to_string(&stamp).ok();
        if image.exists() && current.is_some() && current == seen(&deps) {
            return;
        }
        let ran = match command.output() {
            Ok(ran) => ran,
            Err(error) => fail(&format!("{}: {error}", self.program.display())),
        };
        let said = String::from_utf8_lossy(&ran.stderr) + String::from_utf8_lossy(&ran.stdout);
        if !ran.status.success() {
            eprintln!("{said}\n{command:?}");
            fail(&format!("nvcc does not compile {}", source.display()));
        }
        fs::write(&log, said.as_bytes()).expect("OUT_DIR is writable");
        fs::write(&stamp, seen(&deps).unwrap_or_default()).expect("OUT_DIR is writable");
    }

    /// What a source is compiled for: all architectures and PTX; those of Hopper alone, whose
    /// instructions no other has, for a file with `sm90` in its path.
    fn archs_of(&self, source: &Path) -> Vec<String> {
        let hopper = source.to_string_lossy().contains("sm90");
        let archs = self.archs.iter().filter(|arch| !hopper || *arch == "90a");
        let mut flags: Vec<_> =
            archs.map(|arch| format!("-gencode=arch=compute_{arch},code=sm_{arch}")).collect();
        if !hopper {
            flags.push(format!("-gencode=arch=compute_{PTX},code=compute_{PTX}"));
        }
        flags
    }
}

/// Of all that an image is made from: the command, and the files of ours that nvcc has read.
fn hash(command: &str, source: &Path, deps: &Path) -> Option<String> {
    let deps = fs::read_to_string(deps).ok()?;
    let read = deps.split_whitespace().filter(|path| Path::new(path).starts_with("csrc"));
    let mut hasher = DefaultHasher::new();
    command.hash(&mut hasher);
    fs::read(source).ok()?.hash(&mut hasher);
    for path in read {
        path.hash(&mut hasher);
        fs::read(path).ok()?.hash(&mut hasher);
    }
    Some(format!("{:016x}", hasher.finish()))
}

/// The first nvcc there is, and what it says of its version.
fn find_program() -> (PathBuf, String) {
    if let Some(program) = env::var_os("NVCC").map(PathBuf::from) {
        let Some(version) = version(&program) else {
            fail(&format!("NVCC is {}, which does not run", program.display()));
        };
        return (program, version);
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let in_home = homes.map(|home| Path::new(&home).join("bin/nvcc"));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<_> = env::split_paths(&path).map(|directory| directory.join("nvcc")).collect();
    let usual = PathBuf::from("/usr/local/cuda/bin/nvcc");
    let candidates = in_home.chain(on_path).chain([usual]).chain(from_pip());
    let mut found = candidates.filter(|program| program.exists());
    found.find_map(|program| version(&program).map(|version| (program, version))).unwrap_or_else(
        || {
            fail(
                "the feature `cuda` needs nvcc, which none of NVCC, CUDA_HOME, CUDA_PATH, PATH and \
             /usr/local/cuda names: set one, or let scripts/cuda-toolkit install it",
            )
        },
    )
}

/// What pip installs: by scripts/cuda-toolkit, or into the active Python.
fn from_pip() -> Vec<PathBuf> {
    let venvs = [Some("target/cuda".into()), env::var_os("VIRTUAL_ENV")];
    let libs = venvs.into_iter().flatten().map(|venv| Path::new(&venv).join("lib"));
    let pythons = libs.filter_map(|lib| fs::read_dir(lib).ok()).flatten().flatten();
    let mut sites: Vec<_> = pythons.map(|python| python.path().join("site-packages")).collect();
    let ask = ["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"];
    if let Ok(said) = Command::new("python3").args(ask).output() {
        sites.push(String::from_utf8_lossy(&said.stdout).trim().into());
    }
    sites.into_iter().map(|site| absolute(&site.join("nvidia/cu13/bin/nvcc"))).collect()
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// `Cuda compilation tools, release 13.0, V13.0.88`
fn release(version: &str) -> Option<Release> {
    let (_, from) = version.split_once(", release ")?;
    let (number, _) = from.split_once(',')?;
    let (major, minor) = number.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

pub(crate) fn version(program: &Path) -> Option<String> {
    let said = Command::new(program).arg("--version").output().ok()?;
    said.status.success().then(|| String::from_utf8_lossy(&said.stdout).into_owned())
}

/// The C++ compiler that `cc` finds, for nvcc to call; nvcc reads NVCC_CCBIN itself.
fn host_compiler() -> Option<PathBuf> {
    if env::var_os("NVCC_CCBIN").is_some() {
        return None;
    }
    let compiler = cc::Build::new().cpp(true).cargo_metadata(false).try_get_compiler().ok()?;
    let program = compiler.path();
    // A bare name is looked up where nvcc would look for its own.
    (program != OsStr::new("c++")).then(|| program.to_owned())
}
