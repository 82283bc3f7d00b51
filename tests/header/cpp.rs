//! The parts of `inflight.hpp` that say again what the header says: enumerations, and structs that
//! their constructor prepares.

use std::fmt::Write;

use super::abi::{Abi, ENUMERATIONS, Kind, Struct, wrapped};

const OPENS: &str =
    "// ---- Made from inflight.h: INFLIGHT_REGENERATE=1 cargo test --test header ----\n";
const CLOSES: &str = "// ---- Written again ----\n";

/// Structs that a class has inside.
const WRAPPED: [&str; 4] = ["error", "step_view", "outputs_view", "samples"];

/// Structs whose class is written by hand, for constructors of its own.
const CONSTRUCTED: [&str; 11] = [
    "tensor",
    "kv_cache",
    "request",
    "batch",
    "attention_config",
    "step_limits",
    "attention_args",
    "rope",
    "rope_config",
    "append_args",
    "merge_args",
];

const WIDTH: usize = 100;

pub(crate) fn generate(abi: &Abi, current: &str) -> String {
    let mut parts = current.split(OPENS);
    let mut text = parts.next().unwrap_or_default().to_owned();
    for made in [enumerations(abi), structs(abi)] {
        let (_, rest) = parts.next().and_then(|part| part.split_once(CLOSES)).expect("two regions");
        write!(text, "{OPENS}{made}\n{CLOSES}{rest}").expect("a String takes all");
    }
    assert!(parts.next().is_none(), "there are two regions");
    text
}

fn enumerations(abi: &Abi) -> String {
    let mut text = String::new();
    for of in ENUMERATIONS.iter().filter(|of| !of.cpp.is_empty()) {
        let (prefix, name) = (of.prefix, of.cpp);
        let width = if prefix == "STATUS" { "int32" } else { "uint32" };
        write!(text, "\n/// INFLIGHT_{prefix}_*.\nenum class {name} : std::{width}_t {{\n")
            .expect("a String takes all");
        for (member, _) in abi.members(of) {
            let name = match &*member.to_lowercase() {
                "static" => "static_batches".to_owned(), // a word of the language
                name => name.to_owned(),
            };
            writeln!(text, "    {name} = INFLIGHT_{prefix}_{member},").expect("takes all");
        }
        text.push_str("};\n");
    }
    text
}

fn structs(abi: &Abi) -> String {
    let of = || abi.prepared().filter(|of| !WRAPPED.contains(&&*of.name));
    let bases: String = of().map(base).collect();
    let mut text = format!("\nnamespace detail {{\n{bases}\n}}  // namespace detail\n");
    for Struct { name, doc, .. } in of().filter(|of| !CONSTRUCTED.contains(&&*of.name)) {
        let doc = wrapped(doc, "/// ", WIDTH);
        write!(text, "\n{doc}struct {name} : detail::prepared_{name}<{name}> {{}};\n")
            .expect("a String takes all");
    }
    text
}

/// A struct with its constructor, and setters of fields that are arrays or enumerations.
fn base(of: &Struct) -> String {
    let name = &of.name;
    let mut text = format!(
        "\n/// inflight_{name} with its defaults.\ntemplate <class Self>\nstruct prepared_{name} : \
         inflight_{name} {{\n"
    );
    let (head, call) = (
        format!("    prepared_{name}() noexcept {{"),
        format!("inflight_{name}_init(this, sizeof(inflight_{name}));"),
    );
    let line = format!("{head} {call} }}");
    match line.len() <= WIDTH {
        true => text.push_str(&line),
        false => text.push_str(&format!("{head}\n        {call}\n    }}")),
    }
    text.push('\n');
    for field in &of.fields {
        let field_name = &field.name;
        let (takes, body) = match &field.kind {
            Kind::Array { element, length, size } => {
                let element = match element.strip_suffix("_t") {
                    Some(number) => format!("std::{number}_t"),
                    None => element.clone(),
                };
                let set =
                    size.as_ref().map(|size| format!("\n        {size} = sizeof({element});"));
                let set = set.unwrap_or_default();
                (
                    format!("kept_span<const {element}> elements"),
                    format!(
                        "{field_name} = elements.data();\n        {length} = elements.size();{set}"
                    ),
                )
            }
            Kind::Enum(of) if !of.cpp.is_empty() => (
                format!("inflight::{} chosen", of.cpp),
                format!("{field_name} = static_cast<std::uint32_t>(chosen);"),
            ),
            _ => continue,
        };
        write!(
            text,
            "    Self& set_{field_name}({takes}) noexcept {{\n        {body}\n        return \
             static_cast<Self&>(*this);\n    }}\n"
        )
        .expect("a String takes all");
    }
    text + "};\n"
}
