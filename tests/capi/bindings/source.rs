//! Reading bindings: blocks of their sources, and whether those name a field.

use std::fs;

use super::super::build::root;
use super::abi::{Field, Struct, structs};

/// A place that is to know every field of a struct.
pub(super) struct Mirror {
    /// The struct, without the prefix.
    pub(super) of: &'static str,
    /// Path of the source, from the repository's root.
    pub(super) file: &'static str,
    /// How the line begins that opens the block; "" for the whole file.
    pub(super) block: &'static str,
    /// How the block names a field, `{}` being the field: one of them.
    pub(super) by: &'static [&'static str],
    /// Fields that it does not name, and why.
    pub(super) without: &'static [(&'static str, &'static str)],
}

/// One of them, its fields in their order.
pub(super) const fn of(
    of: &'static str,
    file: &'static str,
    block: &'static str,
    by: &'static [&'static str],
    without: &'static [(&'static str, &'static str)],
) -> Mirror {
    Mirror { of, file, block, by, without }
}

pub(super) fn text(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The lines from the one that begins with `opens` to the end of what it opens, which is indented
/// more.
pub(super) fn block(file: &str, opens: &str) -> String {
    let text = text(file);
    if opens.is_empty() {
        return text;
    }
    let mut lines = text.lines().skip_while(|line| !line.starts_with(opens));
    let first = lines.next().unwrap_or_else(|| panic!("{file} has no line that begins {opens:?}"));
    let closes = |line: &str| line.trim_start().starts_with([')', '}', ']']);
    let inside = lines
        .take_while(|line| line.trim().is_empty() || indent(line) > indent(first) || closes(line));
    let lines: Vec<&str> = std::iter::once(first).chain(inside).collect();
    format!("\n{}\n", lines.join("\n"))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether the text has `what`, not as a part of longer words.
fn has(text: &str, what: &str) -> bool {
    let (first, last) = (what.chars().next(), what.chars().next_back());
    text.match_indices(what).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + what.len()..].chars().next();
        let joins = |one: Option<char>, other: Option<char>| {
            one.is_some_and(is_word) && other.is_some_and(is_word)
        };
        !joins(before, first) && !joins(last, after)
    })
}

impl Mirror {
    /// What it lacks, and what it gives a reason for that does not hold.
    fn wrong(&self, of: &Struct) -> Vec<String> {
        let code = block(self.file, self.block);
        let names =
            |field: &Field| self.by.iter().any(|by| has(&code, &by.replace("{}", &field.name)));
        let excused = |field: &Field| self.without.iter().any(|(name, _)| *name == field.name);
        // The size is set by what prepares the struct, and reserved fields are 0.
        let ours = |field: &&Field| field.name != "struct_size" && field.name != "reserved";
        let place = format!("{}, {:?}", self.file, self.block);
        let mut wrong = Vec::new();
        for field in of.fields.iter().filter(ours).filter(|field| names(field) == excused(field)) {
            wrong.push(match excused(field) {
                true => format!("{place} names {}.{}: it needs no excuse", of.name, field.name),
                false => format!("{place} forgets {}.{}", of.name, field.name),
            });
        }
        let known = |name: &str| of.fields.iter().any(|field| field.name == name);
        let unknown = self.without.iter().filter(|(name, _)| !known(name));
        wrong.extend(unknown.map(|(name, _)| format!("{place}: {} has no {name}", of.name)));
        wrong
    }
}

/// Checks a binding: each struct has a place that knows it, or is in `left_out` with a reason.
pub(super) fn check(mirrors: &[Mirror], left_out: &[(&str, &str)]) {
    let mut wrong = Vec::new();
    let structs = structs();
    for of in &structs {
        let places: Vec<_> = mirrors.iter().filter(|mirror| mirror.of == of.name).collect();
        let is_left_out = left_out.iter().any(|(name, _)| *name == of.name);
        if places.is_empty() != is_left_out {
            wrong.push(format!("{}: it has {} places", of.name, places.len()));
        }
        wrong.extend(places.iter().flat_map(|mirror| mirror.wrong(of)));
    }
    let known = |name: &str| structs.iter().any(|of| of.name == name);
    let names =
        mirrors.iter().map(|mirror| mirror.of).chain(left_out.iter().map(|(name, _)| *name));
    wrong.extend(names.filter(|name| !known(name)).map(|name| format!("there is no {name}")));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_field_that_is_forgotten_is_found() {
    let structs = structs();
    let mirror = |by, without| Mirror {
        of: "event",
        file: "ffi-examples/python/inflight/scheduler.py",
        block: "class Event(NamedTuple)",
        by,
        without,
    };
    let event = structs.iter().find(|of| of.name == "event").expect("there are events");
    assert_eq!(mirror(&["    {}: "], &[]).wrong(event), Vec::<String>::new());
    let fields = event.fields.iter().filter(|field| field.name != "reserved").count();
    assert_eq!(mirror(&["self.{}"], &[]).wrong(event).len(), fields);
    assert_eq!(mirror(&["    {}: "], &[("kind", "")]).wrong(event).len(), 1);
    assert_eq!(mirror(&["    {}: "], &[("other", "")]).wrong(event).len(), 1);
    let mut grown = Struct { name: "event".into(), size: 48, fields: event.fields.clone() };
    let field = Field { name: "added".into(), start: 40, end: 48, of: "uint64_t".into() };
    grown.fields.push(field);
    assert_eq!(mirror(&["    {}: "], &[]).wrong(&grown).len(), 1);
}
