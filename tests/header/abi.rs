//! What the header says, as those who make bindings of it ask.

use std::collections::HashMap;

use super::parse::{self, Function};
use super::source::Prepared;

/// Numbers that belong together: `INFLIGHT_POLICY_*`.
#[derive(Debug)]
pub(crate) struct Enumeration {
    /// "POLICY".
    pub(crate) prefix: &'static str,
    /// The type in C++; "" where it has none.
    pub(crate) cpp: &'static str,
    /// The class in Python, and what it is.
    pub(crate) python: (&'static str, &'static str),
    /// The type in Go, what its constants begin with, and what it is; "" where it has none.
    pub(crate) go: (&'static str, &'static str, &'static str),
}

const fn of(
    prefix: &'static str,
    cpp: &'static str,
    python: (&'static str, &'static str),
    go: (&'static str, &'static str, &'static str),
) -> Enumeration {
    Enumeration { prefix, cpp, python, go }
}

const NOT_IN_GO: (&str, &str, &str) = ("", "", "");

pub(crate) const ENUMERATIONS: [Enumeration; 14] = [
    of(
        "STATUS",
        "status",
        (
            "Status",
            "What a call came to. 1xx: mend the call; 2xx: later; 3xx: the device; 9xx: a bug.",
        ),
        (
            "Status",
            "Status",
            "says in a number why a call failed. It is an error itself, for errors.Is.",
        ),
    ),
    of("LOG", "log_level", ("LogLevel", "How much a line of the log matters."), NOT_IN_GO),
    of(
        "POLICY",
        "policy",
        ("Policy", "Who runs, and who gives way."),
        ("Policy", "", "decides who runs and who gives way."),
    ),
    of("ROW", "", ("RowFlag", "What a row does."), ("RowFlags", "Row", "say what a row does.")),
    of(
        "BLOCK",
        "block_op_kind",
        ("BlockOpKind", "Between which pools a block is copied."),
        ("BlockOpKind", "Block", "says between which pools a block is copied."),
    ),
    of(
        "FINISH",
        "finish",
        ("Finish", "Why a request ended; NONE where it goes on."),
        ("Finish", "Finish", "is why a request ended."),
    ),
    of(
        "EVENT",
        "event_kind",
        ("EventKind", "What happened to a request."),
        ("EventKind", "Event", "is what happened to a request."),
    ),
    of("DEVICE", "device_kind", ("DeviceKind", "What kernels run on."), NOT_IN_GO),
    of("ISA", "isa", ("Isa", "Instructions of a processor."), NOT_IN_GO),
    of("DTYPE", "dtype", ("DType", "Type of an element."), NOT_IN_GO),
    of("LAYOUT", "layout", ("Layout", "Order of a cache's dimensions."), NOT_IN_GO),
    of("ROPE_PAIRS", "rope_pairs", ("RopePairs", "What is rotated together."), NOT_IN_GO),
    of(
        "ROPE_SCALING",
        "rope_scaling",
        ("RopeScaling", "How frequencies are stretched."),
        NOT_IN_GO,
    ),
    of("DLPACK", "dlpack", ("DLPack", "What a capsule holds."), NOT_IN_GO),
];

impl Enumeration {
    /// Whether a field's description names it.
    fn is_named(&self, doc: &str) -> bool {
        doc.contains(&format!("`INFLIGHT_{}_*`", self.prefix))
            || self.prefix == "STATUS" && doc.contains("an `inflight_status`")
    }
}

/// One number.
#[derive(Debug)]
pub(crate) struct Constant {
    /// Without "INFLIGHT_".
    pub(crate) name: String,
    /// As the header has it: "16", "UINT32_MAX".
    pub(crate) value: String,
    pub(crate) doc: String,
}

/// What a field is to those who use it.
#[derive(Debug)]
pub(crate) enum Kind {
    /// `struct_size`.
    Size,
    /// 0.
    Reserved,
    /// Elements of an array, or bytes of one.
    Length,
    /// A pointer to what stands in the ABI as "uint32_t", the field that says how many, and for structs
    /// the field that says how large each is.
    Array {
        element: String,
        length: String,
        size: Option<String>,
    },
    /// 0 or 1.
    Flag,
    Enum(&'static Enumeration),
    /// Nanoseconds; 2^64 - 1 for no time.
    Time,
    /// A number that has a value for none.
    Optional,
    Number,
    /// Anything else: pointers, texts, structs inside.
    Other,
}

#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) name: String,
    /// Its type in C.
    pub(crate) of: String,
    pub(crate) doc: String,
    /// In Rust, where it is not 0.
    pub(crate) default: Option<String>,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) struct Struct {
    /// Without "inflight_".
    pub(crate) name: String,
    pub(crate) doc: String,
    pub(crate) fields: Vec<Field>,
    pub(crate) has_init: bool,
}

impl Struct {
    /// Whether "set at least" in the description names the field.
    pub(crate) fn needs(&self, field: &Field) -> bool {
        let named = self.doc.split_once("set at least").map_or("", |(_, names)| names);
        named.contains(&format!("`{}`", field.name))
    }

    /// Fields but for sizes, lengths and reserved ones; those that have to be set first.
    pub(crate) fn given(&self) -> Vec<&Field> {
        let is_given =
            |field: &&Field| !matches!(field.kind, Kind::Size | Kind::Length | Kind::Reserved);
        let given = || self.fields.iter().filter(is_given);
        let needed = given().filter(|field| self.needs(field));
        needed.chain(given().filter(|field| !self.needs(field))).collect()
    }
}

#[derive(Debug)]
pub(crate) struct Abi {
    pub(crate) constants: Vec<Constant>,
    pub(crate) structs: Vec<Struct>,
    pub(crate) functions: Vec<Function>,
}

impl Abi {
    pub(crate) fn new(text: &str, prepared: Vec<Prepared>) -> Self {
        let docs = docs(text);
        let doc = |name: &str| docs.get(name).cloned().unwrap_or_default();
        let header = parse::header(text);
        let values = header.enums.into_iter().flat_map(|(_, values)| values);
        let constants = header.constants.into_iter().chain(values);
        let constants = constants.map(|(full, value)| {
            let name = full.strip_prefix("INFLIGHT_").expect("all have the prefix").to_owned();
            Constant { doc: doc(&full), name, value }
        });
        let structs = header.structs.into_iter().map(|(full, fields)| {
            let found = prepared.iter().find(|prepared| prepared.of == full);
            let sizes = fields.iter().filter(|field| field.of == "size_t");
            let sizes: Vec<String> = sizes.map(|field| field.name.clone()).collect();
            let arrays = fields.iter().filter(|field| field.of.ends_with('*'));
            let arrays: Vec<String> = arrays.map(|field| field.name.clone()).collect();
            let fields = fields.into_iter().map(|field| {
                let defaults = found.map_or(&[][..], |found| &found.defaults);
                let default = defaults.iter().find(|(name, _)| *name == field.name);
                let default = default.map(|(_, value)| value.clone());
                let doc = doc(&format!("{full}.{}", field.name));
                let kind = kind(&field, [&sizes, &arrays], &doc, default.as_deref());
                Field { kind, doc, default, name: field.name, of: field.of }
            });
            let name = full.strip_prefix("inflight_").expect("all have the prefix").to_owned();
            let fields = fields.collect();
            Struct { doc: doc(&full), has_init: found.is_some(), name, fields }
        });
        let (constants, structs) = (constants.collect(), structs.collect());
        Self { constants, structs, functions: header.functions }
    }

    /// The numbers of one of [`ENUMERATIONS`], each without the prefix.
    pub(crate) fn members(&self, of: &Enumeration) -> Vec<(&str, &Constant)> {
        let named = self.constants.iter().filter_map(|constant| {
            let name = constant.name.strip_prefix(of.prefix)?.strip_prefix('_')?;
            // Lengths of arrays that happen to begin alike.
            let is_member = of.prefix == "STATUS" || !name.ends_with("_SIZE");
            is_member.then_some((name, constant))
        });
        let members: Vec<_> = named.collect();
        assert!(!members.is_empty(), "no number begins INFLIGHT_{}", of.prefix);
        members
    }

    pub(crate) fn get(&self, name: &str) -> &Struct {
        let found = self.structs.iter().find(|of| of.name == name);
        found.unwrap_or_else(|| panic!("there is no inflight_{name}"))
    }

    /// Structs that an `_init` prepares.
    pub(crate) fn prepared(&self) -> impl Iterator<Item = &Struct> {
        self.structs.iter().filter(|of| of.has_init)
    }
}

/// `sizes` and `arrays` are the names of fields of these kinds.
fn kind(
    field: &parse::Variable,
    [sizes, arrays]: [&[String]; 2],
    doc: &str,
    default: Option<&str>,
) -> Kind {
    let name = &*field.name;
    let lengths = |array: &str| [format!("{array}_len"), format!("num_{array}")];
    let size = |array: &str| format!("{}_size", array.trim_end_matches('s'));
    let is_length =
        |array: &String| lengths(array).contains(&field.name) || size(array) == field.name;
    let enumeration = ENUMERATIONS.iter().find(|of| of.is_named(doc));
    let is_flag = doc.starts_with("1 if ") || doc.starts_with("1 (the default) if ");
    let has_none = default.is_some_and(|value| value.starts_with("INFLIGHT_NO_"));
    match (&*field.of, enumeration) {
        ("size_t", _) if name == "struct_size" => Kind::Size,
        _ if name == "reserved" => Kind::Reserved,
        ("size_t", _) if arrays.iter().any(is_length) => Kind::Length,
        (of, _) if of.ends_with('*') => {
            match lengths(name).into_iter().find(|length| sizes.contains(length)) {
                Some(length) => {
                    let element = of.trim_start_matches("const ").trim_end_matches(" *");
                    let element = element.trim_start_matches("struct ").to_owned();
                    let size = Some(size(name)).filter(|size| sizes.contains(size));
                    Kind::Array { element, length, size }
                }
                None => Kind::Other,
            }
        }
        ("uint32_t" | "int32_t", Some(enumeration)) => Kind::Enum(enumeration),
        ("uint32_t", None) if is_flag => Kind::Flag,
        ("uint64_t", _) if name.ends_with("_at") || name == "arrival" => Kind::Time,
        ("uint32_t", _) if has_none => Kind::Optional,
        ("uint32_t" | "int32_t" | "uint64_t" | "int64_t" | "size_t" | "float", _) => Kind::Number,
        _ => Kind::Other,
    }
}

/// The descriptions, by what they describe: "inflight_row", "inflight_row.flags", "INFLIGHT_NOW".
fn docs(text: &str) -> HashMap<String, String> {
    let mut docs = HashMap::new();
    let (mut inside, mut doc) = (None, None);
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let code = line.trim();
        if code == "/**" {
            let said = lines.by_ref().take_while(|line| line.trim() != "*/");
            let said = said.map(|line| line.trim().trim_start_matches('*').trim());
            doc = Some(said.collect::<Vec<_>>().join("\n"));
            continue;
        }
        let name = match code.split_whitespace().collect::<Vec<_>>()[..] {
            ["#define", name, ..] | ["enum", name] => name.to_owned(),
            ["typedef", "struct", name, ..] => {
                inside = code.ends_with('{').then(|| name.to_owned());
                name.to_owned()
            }
            [name, "=", _] => name.to_owned(),
            ["}", ..] => {
                inside = None;
                continue;
            }
            [.., name] => match &inside {
                Some(of) => {
                    let name = name.trim_start_matches('*').trim_end_matches(';');
                    format!("{of}.{}", name.split('[').next().unwrap_or(name))
                }
                None => continue,
            },
            [] => continue,
        };
        if let Some(doc) = doc.take() {
            docs.insert(name, doc);
        }
    }
    docs
}

/// Text in lines of at most `width`, each after `prefix`; paragraphs apart.
pub(crate) fn wrapped(text: &str, prefix: &str, width: usize) -> String {
    let mut lines = String::new();
    for (number, paragraph) in text.split("\n\n").enumerate() {
        if number > 0 {
            lines.push_str(&format!("{}\n", prefix.trim_end()));
        }
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            if !line.is_empty() && prefix.len() + line.len() + 1 + word.len() > width {
                lines.push_str(&format!("{prefix}{line}\n"));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push_str(&format!("{prefix}{line}\n"));
    }
    lines
}

/// "step_view" as "StepView"; each word by `word`.
pub(crate) fn camel(name: &str, word: impl Fn(&str) -> Option<&'static str>) -> String {
    let capital = |part: &str| match word(part) {
        Some(known) => known.to_owned(),
        None => part[..1].to_uppercase() + &part[1..].to_lowercase(),
    };
    name.split('_').map(capital).collect()
}

#[test]
fn descriptions_are_found_by_what_they_describe() {
    let text = "/**\n * A number.\n */\n#define A 1\n\n/**\n * A thing,\n * long.\n */\ntypedef struct \
                a {\n    /**\n     * 1 if so.\n     */\n    uint32_t b[C];\n    /**\n     * A \
                pointer.\n     */\n    const void *c;\n} a;\n\n/**\n * Does.\n */\nvoid f(int x);\n";
    let docs = docs(text);
    let found = |name: &str| docs.get(name).map(String::as_str);
    assert_eq!(found("A"), Some("A number."));
    assert_eq!(found("a"), Some("A thing,\nlong."));
    assert_eq!(found("a.b"), Some("1 if so."));
    assert_eq!(found("a.c"), Some("A pointer."));
    assert_eq!(wrapped("one two three\n\nfour", "# ", 10), "# one two\n# three\n#\n# four\n");
}
