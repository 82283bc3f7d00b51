//! The structs on record.

use std::fs;

use super::super::build::root;

/// A field, where it lies and what it is in C: "const uint32_t *".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) of: String,
}

#[derive(Debug)]
pub(super) struct Struct {
    /// Without the prefix: "request".
    pub(super) name: String,
    pub(super) size: usize,
    pub(super) fields: Vec<Field>,
}

impl Struct {
    pub(super) fn has_size(&self) -> bool {
        self.fields[0].name == "struct_size"
    }
}

pub(super) fn record() -> String {
    fs::read_to_string(root().join("tests/data/abi.txt")).expect("the ABI is on record")
}

pub(super) fn structs() -> Vec<Struct> {
    let mut structs: Vec<Struct> = Vec::new();
    let mut inside = false;
    for line in record().lines() {
        if let Some(head) = line.strip_prefix("struct inflight_") {
            let (name, rest) = head.split_once(", ").expect("a size follows");
            let size = rest.split(' ').next().and_then(|size| size.parse().ok());
            let size = size.expect("a number of bytes");
            structs.push(Struct { name: name.to_owned(), size, fields: Vec::new() });
            inside = true;
        } else if let Some(field) = line.strip_prefix("    ").filter(|_| inside) {
            let (range, field) = field.split_once(' ').expect("a range of bytes");
            let (start, end) = range.split_once("..").expect("start and end");
            let (name, of) = field.split_once(": ").expect("a type follows");
            structs.last_mut().expect("a struct is open").fields.push(Field {
                name: name.to_owned(),
                start: start.parse().expect("a number"),
                end: end.parse().expect("a number"),
                of: of.to_owned(),
            });
        } else {
            inside = false;
        }
    }
    assert!(structs.len() > 20, "the record has structs");
    structs
}

/// A constant on record.
pub(super) fn constant(name: &str) -> usize {
    let record = record();
    let line = record.lines().find_map(|line| line.strip_prefix(&format!("constant {name} = ")));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no constant {name}"))
}

/// The statuses on record: "INFLIGHT_STATUS_CLOSED", 110.
pub(super) fn statuses() -> Vec<(String, i32)> {
    let record = record();
    let values = record.lines().filter_map(|line| line.strip_prefix("    INFLIGHT_STATUS_"));
    let of = |value: &str| {
        let (name, number) = value.split_once(" = ").expect("a number follows");
        (name.to_owned(), number.parse().expect("a number"))
    };
    values.map(of).collect()
}
