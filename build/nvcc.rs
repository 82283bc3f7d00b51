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
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use crate::cost::children_seconds;
use crate::{fail, family};

/// Never asked of the GPU in this machine: what is built depends on what is set, nothing else.
const DEFAULT_ARCHS: &str = "80;90";
/// The first architecture that kernels can be compiled for.
const OLDEST_ARCH: u32 = 80;
/// The first one whose PTX has `griddepcontrol` (dependent launches) and conversions of e4m3.
const HOPPER: u32 = 90;
/// The first one that nvcc knows from [`BLACKWELL`] on.
const BLACKWELL_ARCH: u32 = 100;

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
        if archs.is_empty() {
            return Err(format!(
                "INFLIGHT_CUDA_ARCHS names no architecture: `{DEFAULT_ARCHS}` is what is built \
                 without it"
            ));
        }
        for arch in &archs {
            let Some(number) = number(arch) else {
                return Err(format!(
                    "INFLIGHT_CUDA_ARCHS has `{arch}`, which is not one of nvcc's numbers, as in \
                     `80;89;90;100;120`"
                ));
            };
            if number < OLDEST_ARCH {
                return Err(format!(
                    "INFLIGHT_CUDA_ARCHS has `{arch}`, and kernels need sm_{OLDEST_ARCH} or later"
                ));
            }
            if number >= BLACKWELL_ARCH && release < BLACKWELL {
                return Err(format!(
                    "INFLIGHT_CUDA_ARCHS has `{arch}`, which nvcc {major}.{minor} ({name}) does not \
                     know: leave it out, or set NVCC to an nvcc of CUDA 12.8 or later"
                ));
            }
        }
        let archs = unique(archs.into_iter().map(general));
        Ok(Self { program, version, release, archs, host_compiler: None, flags })
    }

    /// Its version, as CUDA counts: 13000 is 13.0.
    pub(crate) fn toolkit(&self) -> i32 {
        (self.release.0 * 1000 + self.release.1 * 10) as i32
    }

    /// `sm_80, sm_90, PTX 8.0, PTX 9.0`
    pub(crate) fn built(&self) -> String {
        let archs = self.archs.iter().map(|arch| format!("sm_{arch}"));
        let ptx = self.ptx().into_iter().map(|ptx| format!("PTX {}.{}", ptx / 10, ptx % 10));
        archs.chain(ptx).collect::<Vec<_>>().join(", ")
    }

    /// What other architectures compile at run time: PTX of 8.0, and that of 9.0 where something is
    /// built for it or later. Without it a later device's kernels are those of 8.0, which wait for
    /// their predecessor's end and convert e4m3 by integers.
    fn ptx(&self) -> Vec<u32> {
        let hopper = self.archs.iter().any(|arch| number(arch) >= Some(HOPPER));
        std::iter::once(OLDEST_ARCH).chain(hopper.then_some(HOPPER)).collect()
    }

    /// The images, compiled where they are out of date, as many at once as Cargo allows.
    pub(crate) fn compile(&self, sources: &[PathBuf], out: &Path) -> Vec<Option<PathBuf>> {
        let before = children_seconds();
        let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
        let next = AtomicUsize::new(0);
        // Those that were compiled, and for how long.
        let compiled = Mutex::new(Vec::new());
        let work = || {
            while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                let start = Instant::now();
                if self.compile_one(source, out) {
                    let mut compiled = compiled.lock().expect("no thread has panicked");
                    compiled.push((source, start.elapsed().as_secs_f64()));
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..sources.len().min(jobs) {
                scope.spawn(work);
            }
        });
        // CPU time is known of all together: each has its part by the time it took. Kept next to the
        // image, for builds that find it there.
        let compiled = compiled.into_inner().expect("no thread has panicked");
        let all: f64 = compiled.iter().map(|(_, seconds)| seconds).sum();
        let rate = (children_seconds() - before) / all.max(1e-9);
        for (source, seconds) in compiled {
            let path = out.join(format!("{}.seconds", family(source)));
            fs::write(path, (seconds * rate).to_string()).expect("OUT_DIR is writable");
        }
        let image = |source: &PathBuf| {
            let archs = !self.archs_of(source).is_empty();
            archs.then(|| out.join(format!("{}.fatbin", family(source))))
        };
        sources.iter().map(image).collect()
    }

    /// Whether the image had to be compiled.
    fn compile_one(&self, source: &Path, out: &Path) -> bool {
        let at = |extension: &str| out.join(format!("{}.{extension}", family(source)));
        let [image, deps, log, stamp] = ["fatbin", "d", "ptxas", "stamp"].map(at);
        let archs = self.archs_of(source);
        if archs.is_empty() {
            // The report reads it.
            fs::write(&log, "").expect("OUT_DIR is writable");
            return false;
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
            return false;
        }
        let ran = match command.output() {
            Ok(ran) => ran,
            Err(error) => fail(&format!("{}: {error}", self.program.display())),
        };
        let said = String::from_utf8_lossy(&ran.stderr) + String::from_utf8_lossy(&ran.stdout);
        if !ran.status.success() {
            eprintln!("{said}\n{command:?}");
            let (archs, source) = (self.archs.join(";"), source.display());
            fail(&format!("nvcc does not compile {source} for INFLIGHT_CUDA_ARCHS `{archs}`"));
        }
        fs::write(&log, said.as_bytes()).expect("OUT_DIR is writable");
        fs::write(&stamp, seen(&deps).unwrap_or_default()).expect("OUT_DIR is writable");
        true
    }

    /// What a source is compiled for: all architectures and PTX; `sm_90a` alone, which has wgmma and
    /// setmaxnreg and no other has, for a file with `sm90` in its path.
    fn archs_of(&self, source: &Path) -> Vec<String> {
        let name = source.strip_prefix("csrc").unwrap_or(family(source).as_ref());
        if name.to_string_lossy().contains("sm90") {
            let is_built = self.archs.iter().any(|arch| number(arch) == Some(HOPPER));
            let flag = "-gencode=arch=compute_90a,code=sm_90a";
            return is_built.then(|| flag.to_owned()).into_iter().collect();
        }
        let mut ptx = self.ptx();
        let mut flags = Vec::new();
        for arch in &self.archs {
            // One pass of the front end gives the code and the PTX that it is made from.
            let with_ptx =
                ptx.iter().position(|ptx| ptx.to_string() == *arch).map(|at| ptx.remove(at));
            let code = match with_ptx {
                Some(ptx) => format!("[sm_{arch},compute_{ptx}]"),
                None => format!("sm_{arch}"),
            };
            flags.push(format!("-gencode=arch=compute_{arch},code={code}"));
        }
        flags.extend(
            ptx.iter().map(|ptx| format!("-gencode=arch=compute_{ptx},code=compute_{ptx}")),
        );
        flags
    }
}

/// The head dimension that a family's kernels are compiled for: 128 of `decode_bf16_same_d128`.
pub(crate) fn head_dim(family: &str) -> Option<u32> {
    let from = family.rsplit_once("_d")?.1;
    from.split('_').next()?.parse().ok()
}

/// The head dimensions that INFLIGHT_CUDA_HEAD_DIMS names, of those that there are kernels for.
pub(crate) fn head_dims(text: &str, known: &[u32]) -> Result<Vec<u32>, String> {
    let mut known = known.to_vec();
    known.sort_unstable();
    known.dedup();
    let all = known.iter().map(u32::to_string).collect::<Vec<_>>().join(";");
    let mut dims = Vec::new();
    for word in text.split([';', ',', ' ']).filter(|word| !word.is_empty()) {
        match word.parse() {
            Ok(dim) if known.contains(&dim) => dims.push(dim),
            _ => {
                return Err(format!(
                    "INFLIGHT_CUDA_HEAD_DIMS has `{word}`, and there are kernels for {all}"
                ));
            }
        }
    }
    if dims.is_empty() {
        return Err(format!(
            "INFLIGHT_CUDA_HEAD_DIMS names no head dimension: leave it unset for all of {all}"
        ));
    }
    dims.sort_unstable();
    dims.dedup();
    Ok(dims)
}

/// The number of an architecture: 90 of `90` and of `90a`.
fn number(arch: &str) -> Option<u32> {
    let digits = arch.strip_suffix(['a', 'f']).unwrap_or(arch);
    digits.parse().ok().filter(|number| (50..1000).contains(number) && !digits.starts_with('+'))
}

/// `90a` is `90`: what only sm_90a has is in files of their own.
fn general(arch: &str) -> String {
    if number(arch) == Some(HOPPER) { HOPPER.to_string() } else { arch.to_owned() }
}

fn unique(archs: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = Vec::new();
    archs.for_each(|arch| {
        if !seen.contains(&arch) {
            seen.push(arch);
        }
    });
    seen
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
    let set = env::var_os("NVCC").filter(|program| !program.is_empty()).map(PathBuf::from);
    if let Some(program) = set {
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
    let found = candidates.filter(|program| program.exists());
    let found = found.filter_map(|program| version(&program).map(|version| (program, version)));
    first_new_enough(found).unwrap_or_else(|| {
        fail(
            "the feature `cuda` needs nvcc, which none of NVCC, CUDA_HOME, CUDA_PATH, PATH and \
             /usr/local/cuda names: set one, or let scripts/cuda-toolkit install it",
        )
    })
}

/// Of those that are found the first that is not too old, as one of a cluster's may be that is on PATH;
/// the first one where all are, to be refused by name.
pub(crate) fn first_new_enough<T>(found: impl Iterator<Item = (T, String)>) -> Option<(T, String)> {
    let mut too_old = None;
    for (program, version) in found {
        if release(&version).is_some_and(|release| release >= OLDEST) {
            return Some((program, version));
        }
        too_old.get_or_insert((program, version));
    }
    too_old
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
