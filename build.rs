//! Embeds the kernel images: compiled by nvcc with the feature `cuda`, stubs without it.
//!
//! Every `csrc/**/*.cu`, and every file that build/table.rs makes of `csrc/kernels.def`, is one image,
//! its family the file's stem. `src/device/cuda/images.rs` includes the table that is written here, and
//! `src/kernels/cuda/shapes.rs` the rows of `kernels.def`.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

#[cfg(feature = "cuda")]
#[path = "build/cost.rs"]
mod cost;
#[cfg(feature = "cuda")]
#[path = "build/nvcc.rs"]
mod nvcc;
#[cfg(feature = "cuda")]
#[path = "build/report.rs"]
mod report;
#[path = "build/table.rs"]
mod table;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(inflight_kernels)");
    println!("cargo::rustc-check-cfg=cfg(inflight_inject_panic)");
    for path in ["build.rs", "build", "csrc"] {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rerun-if-env-changed=DOCS_RS");
    // For tests that call a C compiler.
    println!("cargo::rustc-env=INFLIGHT_TARGET={}", env::var("TARGET").expect("Cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("Cargo sets it"));
    let mut sources = Vec::new();
    find_sources(Path::new("csrc"), &mut sources);
    let kernels = table::Table::read(Path::new("csrc"));
    sources.extend(kernels.write_instances(&out.join("kernels")));
    fs::write(out.join("kernel_table.rs"), kernels.rust()).expect("OUT_DIR is writable");
    sources.sort_by(|a, b| family(a).cmp(family(b)));
    if let Some(pair) = sources.windows(2).find(|pair| family(&pair[0]) == family(&pair[1])) {
        fail(&format!("{} and {} have the same stem", pair[0].display(), pair[1].display()));
    }
    let head_dims = leave_out(&mut sources);
    let Images { files, built, toolkit } = images(&sources, &out);
    let mut table = "static IMAGES: &[Image] = &[\n".to_owned();
    for (source, image) in sources.iter().zip(files) {
        let family = family(source);
        let bytes = match image {
            Some(path) => format!("include_bytes!({path:?})"),
            None => format!("b\"INFLIGHT-SIMT\\0{family}\\0\""),
        };
        writeln!(table, "    Image {{ family: {family:?}, bytes: &Aligned(*{bytes}).0 }},")
            .expect("a String takes all");
    }
    table += "];\n";
    for (name, of, value) in [
        ("BUILT", "&str", format!("{built:?}")),
        ("TOOLKIT", "Option<i32>", format!("{toolkit:?}")),
        ("HEAD_DIMS", "&[u32]", format!("&{head_dims:?}")),
    ] {
        writeln!(table, "const {name}: {of} = {value};").expect("a String takes all");
    }
    fs::write(out.join("images.rs"), table).expect("OUT_DIR is writable");
}

/// Removes the kernels of head dimensions that INFLIGHT_CUDA_HEAD_DIMS does not name; gives those that
/// it names, or none where all are built.
#[cfg(feature = "cuda")]
fn leave_out(sources: &mut Vec<PathBuf>) -> Vec<u32> {
    println!("cargo::rerun-if-env-changed=INFLIGHT_CUDA_HEAD_DIMS");
    let Ok(text) = env::var("INFLIGHT_CUDA_HEAD_DIMS") else { return Vec::new() };
    let known: Vec<_> =
        sources.iter().filter_map(|source| nvcc::head_dim(family(source))).collect();
    let dims = nvcc::head_dims(&text, &known).unwrap_or_else(|why| fail(&why));
    sources.retain(|source| nvcc::head_dim(family(source)).is_none_or(|dim| dims.contains(&dim)));
    dims
}

#[cfg(not(feature = "cuda"))]
fn leave_out(_sources: &mut Vec<PathBuf>) -> Vec<u32> {
    Vec::new()
}

struct Images {
    /// That of each source, `None` for a stub.
    files: Vec<Option<PathBuf>>,
    /// The architectures in them.
    built: String,
    /// What compiled them, as CUDA counts: 13000 is 13.0.
    toolkit: Option<i32>,
}

impl Images {
    fn stubs(sources: &[PathBuf]) -> Self {
        Self { files: vec![None; sources.len()], built: String::new(), toolkit: None }
    }
}

#[cfg(feature = "cuda")]
fn images(sources: &[PathBuf], out: &Path) -> Images {
    // docs.rs has no nvcc, and documentation shows no kernel.
    if env::var_os("DOCS_RS").is_some() || sources.is_empty() {
        return Images::stubs(sources);
    }
    let nvcc = nvcc::Nvcc::find();
    let files = nvcc.compile(sources, out);
    report::write(sources, out);
    println!("cargo::rustc-cfg=inflight_kernels");
    Images { files, built: nvcc.built(), toolkit: Some(nvcc.toolkit()) }
}

#[cfg(not(feature = "cuda"))]
fn images(sources: &[PathBuf], _out: &Path) -> Images {
    Images::stubs(sources)
}

fn find_sources(directory: &Path, sources: &mut Vec<PathBuf>) {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => fail(&format!("{}: {error}", directory.display())),
    };
    for path in entries.map(|entry| entry.expect("a directory can be read on").path()) {
        if path.is_dir() {
            find_sources(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "cu") {
            sources.push(path);
        }
    }
}

fn family(source: &Path) -> &str {
    source.file_stem().and_then(|stem| stem.to_str()).expect("sources have names in ASCII")
}

/// Ends the build with one sentence.
fn fail(why: &str) -> ! {
    eprintln!("error: {why}");
    std::process::exit(1)
}
