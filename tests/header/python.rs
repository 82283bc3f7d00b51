//! What `ffi-examples/python` declares again: structs of ctypes, numbers, and records of what a caller
//! sets or gets.

use std::fmt::Write;

use super::abi::{Abi, ENUMERATIONS, Field, Kind, Struct, camel, wrapped};
use super::parse::Variable;

const MADE: &str = "Made from inflight.h: INFLIGHT_REGENERATE=1 cargo test --test header.";

/// Records that a caller makes.
const GIVEN: [&str; 5] = ["content", "request", "cache_keys", "scheduler_config", "step_limits"];

/// Records that the library makes.
const TAKEN: [&str; 7] = [
    "row",
    "pending_token",
    "block_op",
    "request_result",
    "scheduler_stats",
    "request_snapshot",
    "cache_stats",
];

/// "step_view" is StepView.
fn class(name: &str) -> String {
    camel(name, |word| (word == "kv").then_some("KV"))
}

/// What a type of C is in ctypes.
fn kind(of: &str) -> String {
    match of.split_once(" [") {
        Some((element, count)) => {
            let count = count.trim_end_matches(']');
            format!("{} * {}", kind(element), count.strip_prefix("INFLIGHT_").unwrap_or(count))
        }
        None if of == "const char *" => "c_char_p".to_owned(),
        None if of.ends_with('*') => "c_void_p".to_owned(),
        None if of.starts_with("struct inflight_") => class(&of["struct inflight_".len()..]),
        None if of == "inflight_status" => "c_int32".to_owned(),
        None => format!("c_{}", if of == "size_t" { of } else { of.trim_end_matches("_t") }),
    }
}

/// `_structs.py`.
pub(crate) fn structs(abi: &Abi) -> String {
    let mut text = format!(
        "\"\"\"The structs and calls of inflight.h. {MADE}\"\"\"\n\nfrom __future__ import \
         annotations\n\nfrom ctypes import (\n    Structure,\n    c_char,\n    c_char_p,\n    \
         c_float,\n    c_int32,\n    c_int64,\n    c_size_t,\n    c_uint8,\n    c_uint32,\n    \
         c_uint64,\n    c_void_p,\n)\nfrom typing import Any, Dict, Tuple\n\n"
    );
    for constant in abi.constants.iter().filter(|constant| constant.name.ends_with("_SIZE")) {
        writeln!(text, "{} = {}", constant.name, constant.value).expect("a String takes all");
    }
    // A struct inside another comes first, whatever the header's order.
    for of in &abi.structs {
        let name = class(&of.name);
        write!(text, "\n\nclass {name}(Structure):\n    _fields_ = [\n").expect("takes all");
        for Field { name, of, .. } in &of.fields {
            writeln!(text, "        (\"{name}\", {}),", kind(of)).expect("takes all");
        }
        text.push_str("    ]\n");
    }
    text.push_str(
        "\n\n# Arguments of the functions that return a status, but the last, which is the error.\n\
         CALLS: Dict[str, Tuple[Any, ...]] = {\n",
    );
    for function in abi.functions.iter().filter(|of| of.returns == "inflight_status") {
        let argument = |of: &Variable| match &*of.of {
            of if of.ends_with('*') || of.ends_with("_callback") || of.ends_with("_fn") => {
                "c_void_p".to_owned()
            }
            of => kind(of),
        };
        let (_, arguments) = function.params.split_last().expect("the error is the last");
        let arguments: Vec<String> = arguments.iter().map(argument).collect();
        let comma = if arguments.len() == 1 { "," } else { "" };
        let name = &function.name["inflight_".len()..];
        writeln!(text, "    \"{name}\": ({}{comma}),", arguments.join(", ")).expect("takes all");
    }
    text.push_str("}\n# Structs that an _init of their own prepares.\n");
    text.push_str("PREPARED: Dict[str, Any] = {\n");
    for Struct { name, .. } in abi.prepared() {
        writeln!(text, "    \"{name}\": {},", class(name)).expect("takes all");
    }
    text.push_str("}\nFREED = (\n");
    for function in &abi.functions {
        if let Some(name) = function.name.strip_suffix("_free") {
            writeln!(text, "    \"{}\",", &name["inflight_".len()..]).expect("takes all");
        }
    }
    text + ")\n"
}

/// `_numbers.py`.
pub(crate) fn numbers(abi: &Abi) -> String {
    let mut text = format!(
        "\"\"\"The numbers of inflight.h. {MADE}\"\"\"\n\nfrom __future__ import annotations\n\nfrom \
         enum import IntEnum, IntFlag\n\n"
    );
    for name in ["ABI_VERSION", "NO_TOKEN", "NOW", "NO_WINDOW", "MAX_STATES"] {
        let found = abi.constants.iter().find(|constant| constant.name == name);
        let value = match &*found.unwrap_or_else(|| panic!("no INFLIGHT_{name}")).value {
            "UINT32_MAX" => "2**32 - 1",
            "UINT64_MAX" => "2**64 - 1",
            other => other,
        };
        writeln!(text, "{name} = {value}").expect("takes all");
    }
    for of in &ENUMERATIONS {
        let (class, what) = of.python;
        let base = if of.prefix == "ROW" { "IntFlag" } else { "IntEnum" };
        write!(text, "\n\nclass {class}({base}):\n    \"\"\"{what}\"\"\"\n\n").expect("takes all");
        for (member, constant) in abi.members(of) {
            writeln!(text, "    {member} = {}", constant.value).expect("takes all");
        }
    }
    text
}

/// `_records.py`.
pub(crate) fn records(abi: &Abi) -> String {
    let mut text = format!(
        "\"\"\"Structs of inflight.h as a caller sets or gets them, described as there.\n\n{MADE}\n\
         \"\"\"\n\nfrom __future__ import annotations\n\nfrom dataclasses import \
         dataclass\nfrom typing import Any, NamedTuple, Optional, Sequence, Union\n\nfrom . import \
         _structs as c\nfrom .enums import BlockOpKind, Policy, RowFlag, known, time_of\n"
    );
    for name in GIVEN {
        given(abi.get(name), &mut text);
    }
    for name in TAKEN {
        taken(abi.get(name), &mut text);
    }
    text
}

fn doc(text: &mut String, doc: &str) {
    let doc = doc.replace('\\', "\\\\");
    match doc.len() + 10 <= 100 && !doc.contains('\n') {
        true => writeln!(text, "    \"\"\"{doc}\"\"\"").expect("takes all"),
        false => {
            let lines = wrapped(&format!("\"\"\"{doc}"), "    ", 100);
            write!(text, "{}\n    \"\"\"\n", lines.trim_end()).expect("takes all");
        }
    }
}

/// The type of a field, for a caller who sets it, and what it is where it is left out.
fn given_type(of: &Struct, field: &Field) -> (String, String) {
    // Where nothing is copied but numbers, None is the library's default.
    let is_config = of.name.ends_with("_config");
    let (kind, default) = match &field.kind {
        Kind::Array { element, .. } => match &**element {
            "uint8_t" => ("Union[bytes, str, None]".to_owned(), "None"),
            "uint32_t" => ("Any".to_owned(), "()"),
            inner => (format!("Sequence[{}]", class(&inner["inflight_".len()..])), "()"),
        },
        Kind::Flag => ("bool".to_owned(), "False"),
        Kind::Enum(of) => (of.python.0.to_owned(), "None"),
        Kind::Time | Kind::Optional => ("Optional[int]".to_owned(), "None"),
        Kind::Number => ("int".to_owned(), "0"),
        other => panic!("{}.{}: {other:?} is set nowhere yet", of.name, field.name),
    };
    match is_config && !of.needs(field) {
        true => (format!("Optional[{kind}]"), "None".to_owned()),
        false => (kind, default.to_owned()),
    }
}

fn given(of: &Struct, text: &mut String) {
    let name = class(&of.name);
    let frozen = if of.name == "request" { "" } else { "(frozen=True)" };
    write!(text, "\n\n@dataclass{frozen}\nclass {name}:\n").expect("takes all");
    doc(text, &of.doc);
    text.push('\n');
    let mut arrays = String::new();
    let all_needed = !of.has_init;
    for field in of.given() {
        let (kind, default) = given_type(of, field);
        match all_needed || of.needs(field) {
            true => writeln!(text, "    {}: {kind}", field.name),
            false => writeln!(text, "    {}: {kind} = {default}", field.name),
        }
        .expect("takes all");
        doc(text, &field.doc);
        if let Kind::Array { element, length, size } = &field.kind {
            let element = match element.strip_prefix("inflight_") {
                Some(inner) => format!("c.{}", class(inner)),
                None => format!("\"{}\"", if element == "uint8_t" { "B" } else { "I" }),
            };
            let size = size.as_ref().map_or("None".to_owned(), |size| format!("\"{size}\""));
            let name = &field.name;
            write!(arrays, "\n    (\"{name}\", \"{length}\", {element}, {size}),")
                .expect("takes all");
        }
    }
    let name = of.name.to_uppercase();
    let arrays = if arrays.is_empty() { arrays } else { format!("{arrays}\n") };
    write!(text, "\n\n{name}_ARRAYS = ({arrays})\n").expect("takes all");
}

fn taken(of: &Struct, text: &mut String) {
    let name = class(&of.name);
    write!(text, "\n\nclass {name}(NamedTuple):\n").expect("takes all");
    doc(text, &of.doc);
    text.push('\n');
    let mut copy = String::new();
    for field in of.given() {
        let c = &field.name;
        let (kind, value) = match &field.kind {
            Kind::Flag => ("bool".to_owned(), format!("bool(of.{c})")),
            Kind::Time => ("Optional[int]".to_owned(), format!("time_of(of.{c})")),
            Kind::Enum(of) if of.prefix == "ROW" => {
                (of.python.0.to_owned(), format!("{}(of.{c})", of.python.0))
            }
            Kind::Enum(of) => {
                let class = of.python.0;
                (format!("Union[{class}, int]"), format!("known({class}, of.{c})"))
            }
            Kind::Number => ("int".to_owned(), format!("of.{c}")),
            other => panic!("{}.{c}: {other:?} is got nowhere yet", of.name),
        };
        writeln!(text, "    {c}: {kind}").expect("takes all");
        doc(text, &field.doc);
        writeln!(copy, "            {value},").expect("takes all");
    }
    write!(
        text,
        "\n    @classmethod\n    def _of(cls, of: c.{name}) -> \"{name}\":\n        return cls(\n\
         {copy}        )\n"
    )
    .expect("takes all");
}
