//! A value of a row before it is trusted, and what may be wrong with it.

use std::fmt::Display;

use super::{MAX_LEN, TraceError};

/// The last step at which a request may arrive.
const MAX_STEP: u64 = 1_000_000_000;

/// What is wrong, from the inside: the line is added by [`Fault::at`].
#[derive(Debug)]
pub(super) enum Fault {
    /// With the file as a whole.
    File(String),
    /// With a line as a whole.
    Line(String),
    /// With one field of a line.
    Field { field: String, reason: String },
}

impl Fault {
    pub(super) fn field(field: impl AsRef<str>, reason: impl Into<String>) -> Self {
        // The name may come from the file, too.
        Self::Field { field: shown(field.as_ref()), reason: reason.into() }
    }

    /// The public form of the fault, met on `line` of `file`.
    pub(super) fn at(self, file: &str, line: usize) -> TraceError {
        let file = file.to_owned();
        match self {
            Self::File(reason) => TraceError { file, line: 0, field: String::new(), reason },
            Self::Line(reason) => TraceError { file, line, field: String::new(), reason },
            Self::Field { field, reason } => TraceError { file, line, field, reason },
        }
    }
}

/// One value as the file spells it. JSON strings still have their quotes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
}

impl Field<'_> {
    /// A number of tokens, 0 to [`MAX_LEN`].
    pub(super) fn tokens(self) -> Result<u32, Fault> {
        self.whole(u64::from(MAX_LEN)).map(|tokens| tokens as u32)
    }

    /// A number of things, 0 to `max`, without point or exponent.
    pub(super) fn whole(self, max: u64) -> Result<u64, Fault> {
        let digits = self.text.strip_prefix('-').unwrap_or(self.text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(self.not("a whole number"));
        }
        if digits.len() < self.text.len() {
            return Err(self.negative());
        }
        digits.parse().ok().filter(|&value| value <= max).ok_or_else(|| self.too_big(max))
    }

    /// A number from 0 to `max`.
    pub(super) fn number(self, max: f64) -> Result<f64, Fault> {
        let value: f64 = self.text.parse().map_err(|_| self.not("a number"))?;
        // Digits beyond the range of f64 parse as infinity: they are too big, not infinite.
        let digits = self.text.bytes().any(|byte| byte.is_ascii_digit());
        if !value.is_finite() && !digits {
            Err(self.not("finite"))
        } else if value < 0.0 {
            Err(self.negative())
        } else if value > max {
            Err(self.too_big(max))
        } else {
            Ok(value)
        }
    }

    /// The number of a step.
    pub(super) fn step(self) -> Result<f64, Fault> {
        self.whole(MAX_STEP).map(|step| step as f64)
    }

    /// A priority: any i32.
    pub(super) fn priority(self) -> Result<i32, Fault> {
        self.text.parse().map_err(|_| self.not("a whole number from -2147483648 to 2147483647"))
    }

    pub(super) fn fault(self, reason: impl Into<String>) -> Fault {
        Fault::field(self.name, reason)
    }

    /// The fault of a value that is not `what`.
    pub(super) fn not(self, what: &str) -> Fault {
        if self.text.is_empty() {
            self.fault("missing")
        } else {
            self.fault(format!("{} is not {what}", quoted(self.text)))
        }
    }

    fn negative(self) -> Fault {
        self.fault(format!("{} is negative", quoted(self.text)))
    }

    fn too_big(self, max: impl Display) -> Fault {
        self.fault(format!("{} is too big: the most is {max}", quoted(self.text)))
    }
}

/// `text` between back quotes, as [`shown`].
pub(super) fn quoted(text: &str) -> String {
    format!("`{}`", shown(text))
}

/// `text` as an error message shows it: on one line, and not for ever.
fn shown(text: &str) -> String {
    const SHOWN: usize = 40;
    let visible = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let mut shown: String = text.chars().take(SHOWN).map(visible).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push_str("...");
    }
    shown
}
