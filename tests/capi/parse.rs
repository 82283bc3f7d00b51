//! What `include/inflight.h` declares. `tests/header` reads it as well.

#[derive(Debug)]
pub(crate) struct Variable {
    /// Its type, without its name: "const struct inflight_request *".
    pub(crate) of: String,
    pub(crate) name: String,
}

#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) returns: String,
    pub(crate) name: String,
    pub(crate) params: Vec<Variable>,
}

#[derive(Debug, Default)]
pub(crate) struct Header {
    /// Names and values.
    pub(crate) constants: Vec<(String, String)>,
    pub(crate) enums: Vec<(String, Vec<(String, String)>)>,
    pub(crate) structs: Vec<(String, Vec<Variable>)>,
    pub(crate) opaque: Vec<String>,
    /// Other type names, with their whole declaration.
    pub(crate) typedefs: Vec<String>,
    pub(crate) functions: Vec<Function>,
}

#[allow(dead_code, reason = "`tests/header` reads a header that it has just made")]
pub(crate) fn text() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/include/inflight.h");
    std::fs::read_to_string(path).expect("the header is there")
}

/// Its text without comments.
pub(crate) fn code(text: &str) -> String {
    let (mut code, mut rest) = (String::new(), text);
    while let Some(start) = rest.find("/*") {
        code.push_str(&rest[..start]);
        let end = rest[start..].find("*/").expect("comments end");
        rest = &rest[start + end + 2..];
    }
    code.push_str(rest);
    code.lines().map(|line| format!("{}\n", line.split("//").next().unwrap_or(""))).collect()
}

/// The parts of `text` between `by` that are in no bracket.
fn split(text: &str, by: char) -> Vec<String> {
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in text.chars() {
        match c {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => depth -= 1,
            _ => {}
        }
        if c == by && depth == 0 {
            parts.push(String::new());
        } else {
            parts.last_mut().expect("there is one").push(c);
        }
    }
    let words = |part: String| part.split_whitespace().collect::<Vec<_>>().join(" ");
    parts.into_iter().map(words).filter(|part| !part.is_empty()).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// A declaration of one name. Of a pointer to a function the name is the one in brackets.
fn variable(declaration: &str) -> Variable {
    let end = match (declaration.find("(*"), declaration.find('[')) {
        (Some(star), _) => star + 2 + declaration[star + 2..].find(')').expect("it is closed"),
        (None, Some(bracket)) => bracket,
        (None, None) => declaration.len(),
    };
    let start = declaration[..end].rfind(|c| !is_word(c)).map_or(0, |at| at + 1);
    let of = format!("{}{}", &declaration[..start], &declaration[end..]);
    Variable { of: of.trim().to_owned(), name: declaration[start..end].to_owned() }
}

fn body(declaration: &str) -> &str {
    let from = declaration.find('{').expect("it has a body") + 1;
    &declaration[from..declaration.rfind('}').expect("it ends")]
}

pub(crate) fn header(text: &str) -> Header {
    let code = code(text).replace("\\\n", " ");
    let mut header = Header::default();
    let mut plain = String::new();
    for line in code.lines() {
        if let Some(define) = line.trim().strip_prefix("#define ") {
            let mut words = define.split_whitespace();
            let name = words.next().expect("it has a name");
            let value = words.next().filter(|_| !name.contains('('));
            header.constants.extend(value.map(|value| (name.to_owned(), value.to_owned())));
        } else if !line.trim().starts_with('#') {
            plain.push_str(line);
            plain.push('\n');
        }
    }
    let start = plain.find("extern \"C\" {").expect("C++ is served");
    let end = plain.rfind('}').expect("that ends");
    let types = plain[..start].to_owned();
    let functions = plain[start + "extern \"C\" {".len()..end].to_owned();
    for declaration in split(&types, ';') {
        let words: Vec<&str> = declaration.split_whitespace().collect();
        let has_body = declaration.contains('{');
        match words[..] {
            ["typedef", "struct", name, ..] if has_body => {
                let fields = split(body(&declaration), ';');
                let fields = fields.iter().map(|field| variable(field)).collect();
                header.structs.push((name.to_owned(), fields));
            }
            ["enum", name, ..] if has_body => {
                let of = |value: &String| {
                    let (name, number) = value.split_once('=').expect("a value is given");
                    (name.trim().to_owned(), number.trim().to_owned())
                };
                let values = split(body(&declaration), ',').iter().map(of).collect();
                header.enums.push((name.to_owned(), values));
            }
            ["typedef", "struct", name, again] if name == again => {
                header.opaque.push(name.to_owned());
            }
            ["typedef", "enum", ..] => {}
            ["typedef", ..] => header.typedefs.push(declaration),
            _ => panic!("the header declares something of a new kind: {declaration}"),
        }
    }
    header.functions = split(&functions, ';').iter().map(|function| parse(function)).collect();
    header
}

fn parse(declaration: &str) -> Function {
    let open = declaration.find('(').expect("a function has a list of parameters");
    let head = variable(&declaration[..open]);
    let inner = &declaration[open + 1..declaration.rfind(')').expect("it is closed")];
    let params = split(inner, ',');
    let params = params.iter().filter(|param| *param != "void").map(|param| variable(param));
    Function { returns: head.of, name: head.name, params: params.collect() }
}
