//! `inflight.hpp`: structs are those of C, prepared by a constructor; a few are wrapped.

use super::abi::{Field, structs};
use super::source::{Mirror, block, check, text};

const HEADER: &str = "include/inflight.hpp";

/// Classes that have a struct inside.
const WRAPPED: [(&str, &str); 4] = [
    ("error", "class failure {"),
    ("step_view", "class step {"),
    ("outputs_view", "class outputs_view {"),
    ("samples", "    result<outputs_view> try_commit(std::uint64_t step_id,"),
];

const MIRRORS: &[Mirror] = &[
    Mirror { of: "error", file: HEADER, block: "class failure {", by: &["raw_.{}"], without: &[] },
    Mirror {
        of: "samples",
        file: HEADER,
        block: "    result<outputs_view> try_commit(std::uint64_t step_id,",
        by: &["given.{}"],
        without: &[],
    },
];

#[test]
fn what_cpp_copies_it_copies_whole() {
    let copied = |name: &str| MIRRORS.iter().any(|mirror| mirror.of == name);
    let structs = structs();
    let others = structs.iter().map(|of| &*of.name).filter(|name| !copied(name));
    let others: Vec<_> = others.map(|name| (name, "C's own, or `raw()` of its class")).collect();
    check(MIRRORS, &others);
}

/// The others' fields are C's: `tests/header` makes what they derive from.
#[test]
fn structs_of_cpp_are_those_of_c() {
    let header = text(HEADER);
    for of in structs().iter().filter(|of| of.has_size() && of.name != "build_info") {
        let name = &of.name;
        let is_wrapped = WRAPPED.iter().any(|(wrapped, _)| wrapped == name);
        let opens = format!("\nstruct {name} : detail::prepared_{name}<{name}> {{");
        assert!(header.contains(&opens) != is_wrapped, "{name}");
    }
}

/// Of views, fields without an array are read from `raw()`.
#[test]
fn views_of_cpp_have_every_array() {
    for (name, opens) in WRAPPED.iter().filter(|(name, _)| name.ends_with("_view")) {
        let class = block(HEADER, opens);
        assert!(class.contains(&format!("const inflight_{name}& raw() const")), "{name}");
        let structs = structs();
        let of = structs.iter().find(|of| of.name == *name).expect("it is on record");
        let is_array = |field: &&Field| field.of.ends_with('*');
        for field in of.fields.iter().filter(is_array) {
            let accessor = format!("> {}() const", field.name);
            let named = format!("_view {}() const", field.name);
            assert!(class.contains(&accessor) || class.contains(&named), "{name}.{}", field.name);
        }
    }
}
