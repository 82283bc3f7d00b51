//! `--decisions`: what the scheduler decided, one JSON line per step.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use inflight::scheduler::{Outputs, Step};

/// Writes decisions to a file.
pub(crate) struct Decisions {
    out: BufWriter<File>,
}

impl Decisions {
    /// Decisions to be written to `file`.
    pub(crate) fn new(file: File) -> Self {
        Self { out: BufWriter::new(file) }
    }

    /// Writes one step and what its commit brought.
    pub(crate) fn step(
        &mut self,
        number: u64,
        step: &Step,
        outputs: &Outputs<'_>,
    ) -> io::Result<()> {
        let out = &mut self.out;
        write!(out, "{{\"step\":{number},\"decode\":")?;
        let decode = step.rows().iter().filter(|row| row.is_decode);
        list(out, decode, |out, row| write!(out, "{}", row.id))?;
        write!(out, ",\"prefill\":")?;
        list(out, step.rows().iter().filter(|row| !row.is_decode), |out, row| {
            write!(out, "[{},{},{}]", row.id, row.num_tokens, row.num_computed)
        })?;
        write!(out, ",\"preempted\":")?;
        list(out, step.preempted(), |out, id| write!(out, "{id}"))?;
        write!(out, ",\"finished\":")?;
        let finished = outputs.as_slice().iter().filter(|output| output.finish.is_some());
        list(out, finished, |out, output| write!(out, "{}", output.id))?;
        let (running, waiting) = (step.running(), step.waiting());
        let free = outputs.free_blocks();
        writeln!(out, ",\"running\":{running},\"waiting\":{waiting},\"free_blocks\":{free}}}")
    }

    /// Writes a step without requests.
    pub(crate) fn empty(&mut self, number: u64, free_blocks: usize) -> io::Result<()> {
        writeln!(
            self.out,
            "{{\"step\":{number},\"decode\":[],\"prefill\":[],\"preempted\":[],\"finished\":[],\
             \"running\":0,\"waiting\":0,\"free_blocks\":{free_blocks}}}"
        )
    }

    /// Everything written is in the file after this.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// `[a,b,c]`.
fn list<T>(
    out: &mut BufWriter<File>,
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut BufWriter<File>, T) -> io::Result<()>,
) -> io::Result<()> {
    out.write_all(b"[")?;
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            out.write_all(b",")?;
        }
        write(out, item)?;
    }
    out.write_all(b"]")
}
