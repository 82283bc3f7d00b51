//! Reads csrc/kernels.def: the files that are compiled of it, and what the host is to know.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// The table's rows, each its name and fields: `ATTENTION` and `decode`, `same`, `64`, ...
pub(crate) struct Table(Vec<(String, Vec<String>)>);

/// A file to be compiled: of one row, for one type of queries.
pub(crate) struct Instance {
    /// `decode_bf16_same_d128`: that of the file and, after `inflight_`, of its kernel.
    pub(crate) name: String,
    pub(crate) text: String,
}

impl Table {
    pub(crate) fn read(csrc: &Path) -> Self {
        let text = fs::read_to_string(csrc.join("kernels.def")).expect("csrc has the table");
        Self::parse(&text)
    }

    pub(crate) fn parse(text: &str) -> Self {
        let row = |line: &str| {
            let row = line.split_once('(').and_then(|(name, fields)| {
                let fields = fields.strip_suffix(')')?.split(',');
                Some((name.to_owned(), fields.map(|field| field.trim().to_owned()).collect()))
            });
            row.unwrap_or_else(|| panic!("kernels.def: `{line}` is not a row in one line"))
        };
        let rows = text.lines().filter_map(|line| line.strip_prefix("INFLIGHT_"));
        Self(rows.map(row).collect())
    }

    fn rows<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Vec<&'a str>> {
        let rows = self.0.iter().filter(move |row| row.0 == name);
        rows.map(|row| row.1.iter().map(String::as_str).collect())
    }

    /// What kernels of a row are called after their family and type of queries: `same_d128`; with the
    /// head dimension of values where it is another one, and the class of devices but the first.
    fn suffix(&self, row: &[&str]) -> String {
        let mut name = row[1].to_owned();
        if let [_, _, d, v, .., class] = row {
            let first = self.rows("DEVICE_CLASS").next().expect("there is a class");
            write!(name, "_d{d}").expect("a String takes all");
            if v != d {
                write!(name, "_v{v}").expect("a String takes all");
            }
            if *class != first[0] {
                write!(name, "_{class}").expect("a String takes all");
            }
        }
        name
    }

    pub(crate) fn instances(&self) -> Vec<Instance> {
        let mut instances = Vec::new();
        for row in self.rows("ATTENTION").chain(self.rows("ROWWISE")) {
            let header = self.rows("FAMILY").find(|family| family[0] == row[0]);
            let header = header.expect("the row's family is in the table")[1];
            for q in self.rows("Q_TYPE") {
                let family = row[0];
                let mut name = format!("{family}_{}_{}", q[0], self.suffix(&row));
                let mut key = vec![q[0]];
                if row[1] == "any" {
                    name = format!("{family}_{}", q[0]);
                } else {
                    key.push(row[1]);
                }
                if let [_, _, d, v, .., class] = row[..] {
                    key.extend([d, v, class]);
                }
                let (macro_name, key) = (family.to_uppercase(), key.join(", "));
                let text = format!(
                    "#include \"{header}\"\n\nINFLIGHT_{macro_name}_KERNELS(inflight_{name}, {key})\n"
                );
                instances.push(Instance { name, text });
            }
        }
        instances
    }

    /// Writes the instances to `folder`, those that differ from what is there; their paths.
    pub(crate) fn write_instances(&self, folder: &Path) -> Vec<PathBuf> {
        fs::create_dir_all(folder).expect("the folder can be made");
        let write = |Instance { name, text }| {
            let path = folder.join(name).with_extension("cu");
            if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
                fs::write(&path, text).expect("the folder is writable");
            }
            path
        };
        self.instances().into_iter().map(write).collect()
    }

    /// The rows in Rust, for src/kernels/cuda/shapes.rs.
    #[allow(dead_code, reason = "the emulator's build has no use for it")]
    pub(crate) fn rust(&self) -> String {
        let mut out = "const CLASSES: &[Class] = &[\n".to_owned();
        for row in self.rows("DEVICE_CLASS") {
            let (from, to, kib) = (row[1], row[2], row[3]);
            writeln!(out, "    Class {{ capabilities: {from}..={to}, kib: {kib} }},")
                .expect("a String takes all");
        }
        out += "];\nconst PADDED: &[(usize, usize)] = &[";
        for row in self.rows("PADDED_HEAD_DIM") {
            write!(out, "({}, {}), ", row[0], row[1]).expect("a String takes all");
        }
        let padded = self.rows("PADDED_HEAD_DIM").map(|row| row[0]);
        let dims = self.rows("ATTENTION").map(|row| row[2]).chain(padded);
        let mut dims: Vec<u32> = dims.map(|dim| dim.parse().expect("a number")).collect();
        dims.sort_unstable();
        dims.dedup();
        writeln!(out, "];\n/// Head dimensions that there are kernels for, in order.")
            .expect("a String takes all");
        writeln!(out, "pub const HEAD_DIMS: &[usize] = &{dims:?};").expect("a String takes all");
        out += "const ROWS: &[Row] = &[\n";
        for row in self.rows("ATTENTION") {
            let class = self.rows("DEVICE_CLASS").position(|class| class[0] == row[10]);
            let class = class.expect("the row's class is in the table");
            let suffix = self.suffix(&row);
            writeln!(
                out,
                "    Row {{ family: {:?}, kv: {:?}, head_dim: {}, rows: {}, keys: {}, threads: {}, \
                 shared: {}, class: {class}, suffix: {suffix:?} }},",
                row[0], row[1], row[2], row[4], row[5], row[7], row[9],
            )
            .expect("a String takes all");
        }
        out + "];\n"
    }
}
