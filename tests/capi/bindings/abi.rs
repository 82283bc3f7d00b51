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

/// What copies them byte by byte reads all of them.
#[test]
fn structs_that_grow_have_no_padding() {
    for of in structs().iter().filter(|of| of.has_size()) {
        let mut at = 0;
        for field in &of.fields {
            assert_eq!(field.start, at, "{}.{}", of.name, field.name);
            at = field.end;
        }
        assert_eq!(at, of.size, "{}", of.name);
    }
}
