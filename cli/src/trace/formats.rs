//! The formats of traces: one table, from which files are recognised and which help, errors and the
//! notes repeat.

use super::csv::{Csv, Header};
use super::field::Fault;
use super::json::Object;
use super::jsonl::Jsonl;
use super::mooncake::Mooncake;
use super::{Options, Reader};

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// A point in time, as [`super::times`] reads it.
    Time,
    /// The number of a step.
    Step,
    /// Tokens of the prompt.
    Prompt,
    /// Tokens of the output.
    Output,
    /// A priority.
    Priority,
    /// A tenant.
    Client,
    /// What the reader of the format looks for by name.
    Other,
}

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Syntax {
    Csv,
    JsonLines,
}

/// A format.
#[derive(Debug)]
pub(super) struct Format {
    /// Its name in outputs.
    pub(super) name: &'static str,
    syntax: Syntax,
    /// The columns, or fields, by name.
    pub(super) columns: &'static [(&'static str, Holds)],
    /// How many of them, from the first, a file must have.
    pub(super) required: usize,
}

/// All formats. A file is of the first one whose required columns it has.
static FORMATS: [Format; 6] = [
    Format {
        name: "azure",
        syntax: Syntax::Csv,
        columns: &[
            ("TIMESTAMP", Holds::Time),
            ("ContextTokens", Holds::Prompt),
            ("GeneratedTokens", Holds::Output),
        ],
        required: 3,
    },
    Format {
        name: "burstgpt",
        syntax: Syntax::Csv,
        columns: &[
            ("Timestamp", Holds::Time),
            ("Request tokens", Holds::Prompt),
            ("Response tokens", Holds::Output),
        ],
        required: 3,
    },
    Format {
        name: "vtc",
        syntax: Syntax::Csv,
        columns: &[
            ("arrived_at", Holds::Time),
            ("client", Holds::Client),
            ("num_prefill_tokens", Holds::Prompt),
            ("num_decode_tokens", Holds::Output),
        ],
        required: 4,
    },
    Format {
        name: "steps",
        syntax: Syntax::Csv,
        columns: &[
            ("arrival_step", Holds::Step),
            ("prompt_len", Holds::Prompt),
            ("output_len", Holds::Output),
            ("priority", Holds::Priority),
            ("client", Holds::Client),
        ],
        required: 3,
    },
    Format {
        name: "mooncake",
        syntax: Syntax::JsonLines,
        columns: &[
            ("input_length", Holds::Prompt),
            ("output_length", Holds::Output),
            ("timestamp", Holds::Other),
            ("hash_ids", Holds::Other),
            ("session_id", Holds::Other),
            ("delay", Holds::Other),
            ("context_mode", Holds::Other),
        ],
        required: 2,
    },
    Format {
        name: "jsonl",
        syntax: Syntax::JsonLines,
        columns: &[
            ("prompt_len", Holds::Prompt),
            ("output_len", Holds::Output),
            ("prompt_token_ids", Holds::Other),
            ("arrival_s", Holds::Other),
            ("arrival_step", Holds::Other),
            ("priority", Holds::Other),
            ("client", Holds::Other),
            ("cache_salt", Holds::Other),
        ],
        required: 2,
    },
];

impl Format {
    /// The format called `name`, one of the table.
    fn named(name: &str) -> &'static Self {
        FORMATS.iter().find(|format| format.name == name).expect("a format of the table")
    }

    /// The name of the column that holds `what`.
    pub(super) fn column(&self, what: Holds) -> &'static str {
        let found = self.columns.iter().find(|(_, holds)| *holds == what);
        found.map_or("", |(name, _)| name)
    }

    /// The names of all columns.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.columns.iter().map(|&(name, _)| name)
    }

    /// Whether rows follow a header.
    pub(super) fn has_header(&self) -> bool {
        self.syntax == Syntax::Csv
    }

    /// The columns as a user reads them, those in brackets optional.
    fn signature(&self) -> String {
        let names: Vec<&str> = self.names().collect();
        let (required, optional) = names.split_at(self.required);
        match optional {
            [] => required.join(", "),
            _ => format!("{} [{}]", required.join(", "), optional.join(", ")),
        }
    }

    fn syntax(&self) -> &'static str {
        match self.syntax {
            Syntax::Csv => "CSV",
            Syntax::JsonLines => "JSON lines",
        }
    }

    /// The format of this syntax that has what `has` finds. Where none is complete, the one whose
    /// prompt or output is there says what is missing.
    fn find(syntax: Syntax, has: impl Fn(&str) -> bool) -> Option<&'static Self> {
        let of_syntax = || FORMATS.iter().filter(|format| format.syntax == syntax);
        let complete = |format: &Format| format.names().take(format.required).all(&has);
        let begun = |format: &Format| {
            let lengths = [Holds::Prompt, Holds::Output];
            format.columns.iter().any(|(name, holds)| lengths.contains(holds) && has(name))
        };
        of_syntax().find(|format| complete(format)).or_else(|| of_syntax().find(|f| begun(f)))
    }
}

/// The reader of a file that begins with the line `first`.
pub(super) fn detect(first: &str, options: &Options) -> Result<Box<dyn Reader>, Fault> {
    if first.starts_with('{') {
        let object = Object::parse(first)?;
        let has = |name: &str| object.has(name);
        // A prompt may be given by its tokens alone.
        let by_tokens = has("prompt_token_ids").then(|| Format::named("jsonl"));
        let format = Format::find(Syntax::JsonLines, has).or(by_tokens);
        let format = format.ok_or_else(not_a_trace)?;
        return Ok(match format.name {
            "mooncake" => Box::new(Mooncake::new(format, options.hash_block_size)),
            _ => Box::new(Jsonl::new(format)),
        });
    }
    let header = Header::parse(first);
    let format = Format::find(Syntax::Csv, |name| header.has(name)).ok_or_else(not_a_trace)?;
    Ok(Box::new(Csv::new(format, &header)?))
}

/// The fault of a file in none of the formats.
pub(super) fn not_a_trace() -> Fault {
    let known = FORMATS.iter().map(|format| {
        let (name, syntax, columns) = (format.name, format.syntax(), format.signature());
        format!("{name} ({syntax}: {columns})")
    });
    let known = known.collect::<Vec<_>>().join(", ");
    Fault::File(format!("not a request trace; the known formats are {known}"))
}

/// The table of formats, for `--help`.
pub(crate) fn help() -> String {
    let mut text = String::from(
        "Formats of TRACE, found from its content; - is standard input; what gzip or zstd has\n\
         compressed is decompressed:\n",
    );
    for format in &FORMATS {
        let mut line = format!("  {:9} {:11}", format.name, format.syntax());
        let indent = line.len();
        for word in format.signature().split_inclusive(", ") {
            if line.len() + word.trim_end().len() > 98 {
                text += &format!("\n{}", line.trim_end());
                line = " ".repeat(indent);
            }
            line += word;
        }
        text += &format!("\n{line}");
    }
    text + "\n\n\
        Columns in brackets are optional. A CSV may have others, in any order, and its header any\n\
        case. A time is a date such as 2023-11-16 18:17:03.97 with a zone (Z, UTC, +01:00, +0100,\n\
        +01) or without (UTC), or a number: seconds below 10^11, else milliseconds, microseconds\n\
        or nanoseconds, as the size of the first says. timestamp and delay of mooncake are\n\
        milliseconds. prompt_token_ids may stand for prompt_len. Rows of 0 tokens of prompt or\n\
        output, as failed requests have them, are skipped and counted."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_all_columns_within_a_terminal() {
        let help = help();
        for format in &FORMATS {
            assert!(help.contains(&format!("\n  {} ", format.name)), "{help}");
            assert!(format.names().all(|name| help.contains(name)), "{help}");
        }
        assert!(help.lines().all(|line| line.len() <= 98 && line == line.trim_end()), "{help}");
    }

    /// The notes have the same table.
    #[test]
    fn the_notes_name_all_columns() {
        let notes = include_str!("../../../docs/notes/replay.md");
        for format in &FORMATS {
            let row = notes.lines().find(|line| line.starts_with(&format!("| `{}` ", format.name)));
            let row = row.unwrap_or_else(|| panic!("{} is not in the notes", format.name));
            for name in format.names() {
                assert!(row.contains(&format!("`{name}`")), "{name}: {row}");
            }
        }
    }
}
