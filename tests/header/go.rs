//! `ffi-examples/go/abi.go`: numbers, types that lie over those of C, and structs that are copied.

use std::fmt::Write;

use super::abi::{Abi, ENUMERATIONS, Field, Kind, Struct, camel, wrapped};

/// Types that lie over C's, memory of the library being read as theirs: the struct and its name, and
/// fields that methods give.
const OVER: [(&str, &str, &[&str]); 6] = [
    ("row", "Row", &[]),
    ("pending_token", "PendingToken", &[]),
    ("block_op", "BlockOp", &[]),
    ("output", "Output", &["first_token", "num_tokens", "result"]),
    ("event", "Event", &[]),
    ("request_result", "RequestResult", &[]),
];

/// Structs that are made for C.
const GIVEN: [(&str, &str); 2] = [("content", "Content"), ("request", "Request")];

/// Structs that are made of C's.
const TAKEN: [(&str, &str); 2] = [("scheduler_stats", "Stats"), ("request_snapshot", "Snapshot")];

const HEAD: &str = "// Code generated from inflight.h by tests/header; DO NOT EDIT.\n\npackage \
                    inflight\n\n// Descriptions are those of inflight.h: names in them are C's.\n\n// \
                    #include \"boundary.h\"\nimport \"C\"\n\nimport (\n\t\"time\"\n\t\"unsafe\"\n)\n";

pub(crate) fn generate(abi: &Abi) -> String {
    let mut text = HEAD.to_owned();
    enumerations(abi, &mut text);
    for (of, name, hidden) in OVER {
        over(abi.get(of), name, hidden, &mut text);
    }
    for (of, name) in GIVEN {
        given(abi.get(of), name, &mut text);
    }
    config(abi.get("scheduler_config"), &mut text);
    for (of, name) in TAKEN {
        taken(abi.get(of), name, &mut text);
    }
    text
}

/// A name in Go.
fn name(of: &str) -> String {
    camel(of, |word| match word {
        "id" => Some("ID"),
        "eos" | "EOS" => Some("EOS"),
        "cuda" | "CUDA" => Some("CUDA"),
        "kv" => Some("KV"),
        _ => None,
    })
}

fn enumerations(abi: &Abi, text: &mut String) {
    for of in ENUMERATIONS.iter().filter(|of| !of.go.0.is_empty()) {
        let (kind, prefix, what) = of.go;
        let number = if of.prefix == "STATUS" { "int32" } else { "uint32" };
        let doc = wrapped(&format!("{kind} {what}"), "// ", 100);
        write!(text, "\n{doc}type {kind} {number}\n\n// Each {kind}.\nconst (\n")
            .expect("takes all");
        for (member, constant) in abi.members(of) {
            if (of.prefix, member) == ("STATUS", "OK") {
                continue; // calls that went well have no error
            }
            let name = format!("{prefix}{}", name(member));
            let doc = wrapped(&format!("{name}: {}", constant.doc), "\t// ", 97);
            let full = &constant.name;
            writeln!(text, "{doc}\t{name} {kind} = C.INFLIGHT_{full}").expect("takes all");
        }
        text.push_str(")\n");
    }
}

fn field_doc(name: &str, field: &Field) -> String {
    wrapped(&format!("{name}: {}", field.doc), "\t// ", 97)
}

fn head(of: &Struct, name: &str, text: &mut String) {
    let doc = format!("{name} is an inflight_{}. {}", of.name, of.doc);
    write!(text, "\n{}type {name} struct {{\n", wrapped(&doc, "// ", 100)).expect("takes all");
}

fn number(field: &Field) -> &str {
    field.of.trim_end_matches("_t")
}

fn over(of: &Struct, go: &str, hidden: &[&str], text: &mut String) {
    head(of, go, text);
    let mut asserts = String::new();
    for field in &of.fields {
        let kind = match (&field.kind, &*field.of) {
            (Kind::Enum(of), _) => of.go.0,
            (Kind::Time, _) => "time.Duration",
            (_, "struct inflight_request_result") => "RequestResult",
            (_, "uint64_t [2]") => "[2]uint64",
            _ => number(field),
        };
        let mut name = name(&field.name);
        if hidden.contains(&&*field.name) {
            name = name[..1].to_lowercase() + &name[1..];
        }
        let c = &field.name;
        match field.kind {
            Kind::Reserved => name = "_".to_owned(),
            _ => writeln!(
                asserts,
                "\t_ = [1]struct{{}}{{}}[unsafe.Offsetof({go}{{}}.{name})-unsafe.Offsetof(C.\
                 inflight_{}{{}}.{c})]",
                of.name
            )
            .expect("takes all"),
        }
        let doc = field_doc(&name, field);
        writeln!(text, "{doc}\t{name} {kind}").expect("takes all");
    }
    let c = &of.name;
    write!(
        text,
        "}}\n\n// {go} lies over C's.\nvar (\n\t_ = [1]struct{{}}{{}}[unsafe.Sizeof({go}{{}})-C.\
         sizeof_inflight_{c}]\n{asserts})\n"
    )
    .expect("takes all");
}

fn given(of: &Struct, go: &str, text: &mut String) {
    head(of, go, text);
    let mut fill = String::new();
    for field in of.given() {
        let (c, name) = (&field.name, name(&field.name));
        let number = number(field);
        let (kind, set) = match &field.kind {
            Kind::Array { element, length, size } => {
                let (kind, pinned) = match &**element {
                    "uint32_t" => ("Token", format!("r.{name}")),
                    "uint8_t" => ("byte", format!("r.{name}")),
                    other => {
                        let inner = GIVEN.iter().find(|(of, _)| format!("inflight_{of}") == *other);
                        let (_, inner) = inner.expect("it is made for C");
                        write!(
                            fill,
                            "\tfor i := range r.{name} {{\n\t\tp.{c} = append(p.{c}, \
                             C.{other}{{}})\n\t\tp.fill{inner}(&p.{c}[i], &r.{name}[i])\n\t}}\n"
                        )
                        .expect("takes all");
                        (*inner, format!("p.{c}"))
                    }
                };
                let size = size.as_ref().map(|size| format!("\tc.{size} = C.sizeof_{element}\n"));
                let set = format!(
                    "\tc.{c} = (*C.{element})(pin(p, {pinned}))\n\tc.{length} = \
                     C.size_t(len(r.{name}))\n{}",
                    size.unwrap_or_default()
                );
                (format!("[]{kind}"), set)
            }
            Kind::Time => (
                "time.Duration".to_owned(),
                format!("\tif r.{name} > 0 {{\n\t\tc.{c} = C.uint64_t(r.{name})\n\t}}\n"),
            ),
            Kind::Optional => (
                format!("*{number}"),
                format!("\tif r.{name} != nil {{\n\t\tc.{c} = C.{}(*r.{name})\n\t}}\n", field.of),
            ),
            Kind::Flag => ("bool".to_owned(), format!("\tc.{c} = flag(r.{name})\n")),
            Kind::Number => (number.to_owned(), format!("\tc.{c} = C.{}(r.{name})\n", field.of)),
            other => panic!("{}.{c}: {other:?} is made for C nowhere yet", of.name),
        };
        fill.push_str(&set);
        let doc = field_doc(&name, field);
        writeln!(text, "{doc}\t{name} {kind}").expect("takes all");
    }
    write!(
        text,
        "}}\n\n// fill{go} makes C's of one, whose arrays are pinned.\nfunc (p *passed) fill{go}(c \
         *C.inflight_{}, r *{go}) {{\n{fill}}}\n",
        of.name
    )
    .expect("takes all");
}

fn config(of: &Struct, text: &mut String) {
    head(of, "Config", text);
    let mut set = String::new();
    for field in of.given() {
        let (c, mut name) = (&field.name, name(&field.name));
        let (kind, doc) = match (&field.kind, field.default.as_deref()) {
            (Kind::Flag, None) => {
                writeln!(set, "\tout.{c} = flag(c.{name})").expect("takes all");
                ("bool", field.doc.replacen("1 if", "whether", 1))
            }
            // The zero of Go is the default.
            (Kind::Flag, Some("1")) => {
                name = format!("No{name}");
                writeln!(set, "\tout.{c} = flag(!c.{name})").expect("takes all");
                ("bool", field.doc.replacen("1 (the default) if", "switches off that", 1))
            }
            (Kind::Enum(of), _) => {
                writeln!(set, "\tout.{c} = C.uint32_t(c.{name})").expect("takes all");
                (of.go.0, field.doc.clone())
            }
            (Kind::Number, _) => {
                let bits = if field.of == "uint64_t" { 64 } else { 32 };
                writeln!(set, "\tset{bits}(&err, \"{c}\", c.{name}, &out.{c})").expect("takes all");
                ("int", field.doc.clone())
            }
            other => panic!("{c}: {other:?} is made for C nowhere yet"),
        };
        let doc = wrapped(&format!("{name}: {doc}"), "\t// ", 97);
        writeln!(text, "{doc}\t{name} {kind}").expect("takes all");
    }
    write!(
        text,
        "}}\n\n// toC makes C's: 0 is the default.\nfunc (c *Config) toC() (C.inflight_{of}, error) \
         {{\n\tvar (\n\t\tout C.inflight_{of}\n\t\terr error\n\t)\n\tC.inflight_{of}_init(&out, \
         C.sizeof_inflight_{of})\n{set}\treturn out, err\n}}\n",
        of = of.name
    )
    .expect("takes all");
}

fn taken(of: &Struct, go: &str, text: &mut String) {
    head(of, go, text);
    let mut copy = String::new();
    for field in of.given() {
        let (c, name) = (&field.name, name(&field.name));
        let kind = match (&field.kind, &*field.of) {
            (Kind::Flag, _) => "bool",
            (Kind::Time, _) => "time.Duration",
            (Kind::Number, "uint64_t") if !c.starts_with("num_") => "uint64",
            (Kind::Number, _) => "int",
            (other, _) => panic!("{}.{c}: {other:?} is made of C's nowhere yet", of.name),
        };
        match kind {
            "bool" => writeln!(copy, "\tof.{name} = c.{c} != 0"),
            kind => writeln!(copy, "\tof.{name} = {kind}(c.{c})"),
        }
        .expect("takes all");
        let doc = field_doc(&name, field);
        writeln!(text, "{doc}\t{name} {kind}").expect("takes all");
    }
    let lower = go[..1].to_lowercase() + &go[1..];
    write!(
        text,
        "}}\n\n// {lower}Of makes one of C's.\nfunc {lower}Of(c *C.inflight_{}) (of {go}) {{\n{copy}\t\
         return of\n}}\n",
        of.name
    )
    .expect("takes all");
}
