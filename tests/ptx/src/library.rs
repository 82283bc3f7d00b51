//! Kernels by name, from a folder of PTX files: `decode_bf16_same_d128.80.ptx` is what nvcc made of
//! that source for compute_80.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::parse;
use crate::program::Program;

/// What is loaded, and where each kernel is to be found.
pub(crate) struct Library {
    folder: PathBuf,
    /// Files by target and kernel.
    files: RefCell<HashMap<u32, HashMap<String, PathBuf>>>,
    loaded: RefCell<Vec<Rc<Program>>>,
    known: RefCell<HashMap<(u32, String), Rc<Program>>>,
    /// The file that was read last.
    reading: RefCell<PathBuf>,
}

impl Library {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            files: RefCell::default(),
            loaded: RefCell::default(),
            known: RefCell::default(),
            reading: RefCell::default(),
        }
    }

    pub(crate) fn reading(&self) -> String {
        self.reading.borrow().display().to_string()
    }

    /// A kernel for a target: 80 or 90, and for 90 those that are for 90a alone too.
    pub(crate) fn find(&self, name: &str, target: u32) -> parse::Result<Rc<Program>> {
        let key = (target, name.to_owned());
        if let Some(program) = self.known.borrow().get(&key) {
            return Ok(Rc::clone(program));
        }
        if !self.files.borrow().contains_key(&target) {
            let found = self.index(target)?;
            self.files.borrow_mut().insert(target, found);
        }
        let path = self.files.borrow()[&target].get(name).cloned();
        let Some(path) = path else {
            let folder = self.folder.display();
            return Err(format!(
                "{folder} has no PTX of the kernel {name} for compute_{target}: scripts/kernel-ptx makes it"
            ));
        };
        self.reading.replace(path.clone());
        let mut program = load(&path, name)?;
        let first_pc = self
            .loaded
            .borrow()
            .last()
            .map_or(0, |last| last.first_pc + last.code.len() as u32 + 1);
        program.first_pc = first_pc;
        let program = Rc::new(program);
        self.loaded.borrow_mut().push(Rc::clone(&program));
        self.known.borrow_mut().insert(key, Rc::clone(&program));
        Ok(program)
    }

    fn index(&self, target: u32) -> parse::Result<HashMap<String, PathBuf>> {
        let folder = self.folder.display();
        let listed = std::fs::read_dir(&self.folder);
        let listed =
            listed.map_err(|why| format!("{folder}: {why}: scripts/kernel-ptx makes it"))?;
        let mut files = HashMap::new();
        for path in listed.filter_map(|entry| Some(entry.ok()?.path())) {
            let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let is_own = file.ends_with(&format!(".{target}.ptx"));
            let is_of_hopper = target == 90 && file.ends_with(".90a.ptx");
            if !is_own && !is_of_hopper {
                continue;
            }
            self.reading.replace(path.clone());
            let text = parse::read(&path)?;
            for kernel in parse::entries(&text) {
                if is_own || !files.contains_key(kernel) {
                    files.insert(kernel.to_owned(), path.clone());
                }
            }
        }
        Ok(files)
    }

    /// The place of an instruction, by its number among those of all kernels.
    pub(crate) fn place(&self, pc: u32) -> String {
        let loaded = self.loaded.borrow();
        let at = loaded.partition_point(|program| program.first_pc <= pc);
        match at.checked_sub(1).and_then(|at| loaded.get(at)) {
            Some(program) => program.place((pc - program.first_pc) as usize),
            None => format!("+{pc}"),
        }
    }

    /// How often each instruction was executed: a line each of kernel, file, line of PTX, source, opcode,
    /// executions by warps, and of branches those that some lane took.
    pub(crate) fn coverage(&self) -> String {
        let mut text = String::new();
        for program in self.loaded.borrow().iter() {
            for (i, line) in program.lines.iter().enumerate() {
                let source = program.source(line.place).unwrap_or_default();
                let (opcode, executed) = (&program.opcodes[i], program.executed[i].get());
                let (name, file, taken) = (&program.name, &program.file, program.taken[i].get());
                let _ = writeln!(
                    text,
                    "{name}\t{file}\t{}\t{source}\t{opcode}\t{executed}\t{taken}",
                    line.ptx
                );
            }
        }
        text
    }
}

/// A kernel of a file.
pub(crate) fn load(path: &Path, name: &str) -> parse::Result<Program> {
    let text = parse::read(path)?;
    let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    Program::new(&parse::parse(&text, name, file)?, file)
}
