//! Files the program writes: whole or not at all, and never over what it reads.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::Failure;
use crate::args::Replay;

/// A file in the making: it takes its name when it is complete.
pub(crate) struct Output {
    path: PathBuf,
    /// Where it is written meanwhile; none for what is not a plain file, such as a pipe.
    partial: Option<PathBuf>,
    file: File,
}

impl Output {
    /// Starts a file that will be called `path`.
    ///
    /// # Errors
    /// It cannot be written there.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let special = fs::metadata(path).is_ok_and(|meta| !meta.is_file());
        let partial = (!special).then(|| {
            let mut name = path.as_os_str().to_owned();
            name.push(".partial");
            PathBuf::from(name)
        });
        let file = File::create(partial.as_deref().unwrap_or(path));
        let file = file.map_err(|error| unwritable(path, &error))?;
        Ok(Self { path: path.to_owned(), partial, file })
    }

    /// Writes all of the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(mut self, text: &str) -> Result<(), Failure> {
        let written = self.file.write_all(text.as_bytes());
        written.map_err(|error| unwritable(&self.path, &error))?;
        self.complete()
    }

    /// The file, to write to before it is [`complete`](Self::complete).
    pub(crate) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// It cannot have it.
    pub(crate) fn complete(self) -> Result<(), Failure> {
        match &self.partial {
            Some(partial) => {
                fs::rename(partial, &self.path).map_err(|error| unwritable(&self.path, &error))
            }
            None => Ok(()),
        }
    }
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::Run(format!("{}: {error}", path.display()))
}

/// Checks that no file is asked for twice, and none is the trace.
///
/// # Errors
/// The two options that name one file.
pub(crate) fn check_paths(args: &Replay) -> Result<(), Failure> {
    // Standard input is not a file, whatever files there are.
    let trace = args.trace.clone().filter(|path| path.as_os_str() != "-");
    let named = [
        ("the trace", &trace),
        ("--decisions", &args.decisions),
        ("--json", &args.json),
        ("--report", &args.report),
    ];
    let mut seen: Vec<(&str, PathBuf)> = Vec::new();
    for (what, path) in named {
        // A pipe may be written to as often as one likes.
        let Some(path) = path.as_deref().filter(|path| path.is_file() || !path.exists()) else {
            continue;
        };
        let real = real(path);
        if let Some((other, _)) = seen.iter().find(|(_, earlier)| *earlier == real) {
            let path = path.display();
            return Err(Failure::Usage(format!("{what} and {other} are one file: {path}")));
        }
        seen.push((what, real));
    }
    Ok(())
}

/// The path without links and dots, whether the file exists or not.
fn real(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = || fs::canonicalize(parent.unwrap_or(Path::new("."))).ok();
    fs::canonicalize(path)
        .ok()
        .or_else(|| Some(folder()?.join(path.file_name()?)))
        .unwrap_or_else(|| path.to_owned())
}
