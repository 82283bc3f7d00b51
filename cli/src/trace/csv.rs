//! Tables of plain values between commas: what the CSV traces need, and no more.

use super::field::{Fault, Field, quoted};

/// The names of the columns, in the order of the file.
pub(super) struct Header<'a> {
    names: Vec<&'a str>,
}

impl<'a> Header<'a> {
    pub(super) fn parse(line: &'a str) -> Self {
        Self { names: line.split(',').map(bare).collect() }
    }

    /// Whether any column is called one of `names`.
    pub(super) fn has_any(&self, names: &[&str]) -> bool {
        self.names.iter().any(|name| names.contains(name))
    }
}

/// Where the columns of one format are in a file. Any order will do; each name occurs once.
pub(super) struct Table<const N: usize> {
    /// What the columns are called, in the order in which the format's reader takes them.
    names: [&'static str; N],
    /// Where each is in a line; `None` for an optional column that the file does not have.
    places: [Option<usize>; N],
    /// How many columns the file has.
    width: usize,
}

impl<const N: usize> Table<N> {
    /// Finds the columns `names`, of which the first `required` must be there.
    pub(super) fn new(
        header: &Header<'_>,
        names: [&'static str; N],
        required: usize,
    ) -> Result<Self, Fault> {
        let mut places = [None; N];
        for (place, &name) in header.names.iter().enumerate() {
            let Some(column) = names.iter().position(|&known| known == name) else {
                let reason = format!("unknown column; the format has {}", names.join(","));
                return Err(Fault::field(name, reason));
            };
            if places[column].replace(place).is_some() {
                return Err(Fault::field(name, "two columns have this name"));
            }
        }
        match places[..required].iter().position(Option::is_none) {
            Some(column) => Err(Fault::field(names[column], "missing from the header")),
            None => Ok(Self { names, places, width: header.names.len() }),
        }
    }

    /// The values of a line in the format's order; "0" for a column that the file does not have.
    pub(super) fn fields<'a>(&self, line: &'a str) -> Result<[Field<'a>; N], Fault> {
        let mut fields = self.names.map(|name| Field { name, text: "0" });
        let mut found = 0;
        for (place, text) in line.split(',').enumerate() {
            found += 1;
            if let Some(column) = self.places.iter().position(|&known| known == Some(place)) {
                fields[column].text = bare(text);
            }
        }
        if found > self.width {
            let extra = line.split(',').nth(self.width).unwrap_or_default();
            let reason = format!("{} is one more than the header has", quoted(bare(extra)));
            return Err(Fault::field(format!("column {}", self.width + 1), reason));
        }
        let missing = |place: &Option<usize>| place.is_some_and(|place| place >= found);
        match self.places.iter().position(missing) {
            Some(column) => Err(fields[column].fault("missing")),
            None => Ok(fields),
        }
    }
}

/// A name or value without the blanks and quotes around it.
fn bare(text: &str) -> &str {
    let text = text.trim();
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text).trim()
}
