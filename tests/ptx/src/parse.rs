//! PTX text into statements: registers, labels, operands and where in the source each one stands.
//!
//! One kernel of a file is read at a time. Scopes of inline assembly (`{ .reg .pred p; ... }`) are
//! flattened: what they declare gets a name of its own.

use std::collections::HashMap;

/// Why a file cannot be read, with its name and line.
pub(crate) type Result<T> = std::result::Result<T, String>;

/// A kernel's text, taken apart.
pub(crate) struct Entry<'t> {
    pub(crate) name: &'t str,
    /// Parameters by name: offset and bytes.
    pub(crate) params: HashMap<&'t str, (u32, u32)>,
    pub(crate) param_bytes: u32,
    /// `.maxntid`, all dimensions multiplied.
    pub(crate) max_threads: u32,
    /// `.minnctapersm`.
    pub(crate) min_blocks: u32,
    /// Registers by name; those of scopes have the scope's number before a `:`.
    pub(crate) registers: HashMap<String, Class>,
    pub(crate) local_bytes: u32,
    pub(crate) statements: Vec<Statement<'t>>,
    /// What a label stands before.
    pub(crate) labels: HashMap<String, usize>,
    /// Names of the sources that places name.
    pub(crate) sources: Vec<String>,
    /// `.extern .shared`: dynamic shared memory.
    pub(crate) dynamic_shared: Vec<&'t str>,
}

/// More of anything than a kernel has: files, registers, bytes of a parameter or of local memory.
const MOST: usize = 1 << 19;

/// What a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    Predicate,
    /// 8, 16 and 32 bits, kept as 32.
    Word(u32),
    Double,
}

/// A line of a source, by the number of its file in [`Entry::sources`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) file: u32,
    pub(crate) line: u32,
}

pub(crate) struct Statement<'t> {
    /// Of the PTX.
    pub(crate) line: u32,
    pub(crate) place: Place,
    /// `@p`, or `@!p`: then true.
    pub(crate) guard: Option<(String, bool)>,
    pub(crate) opcode: &'t str,
    pub(crate) operands: Vec<Operand<'t>>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand<'t> {
    Register(String),
    /// `%tid.x` and its like.
    Special(&'t str),
    Integer(u64),
    Float(u32),
    /// A parameter, a variable.
    Symbol(&'t str),
    /// Of a branch; `N:name` where it may be one of the scope's.
    Label(String),
    Vector(Vec<Operand<'t>>),
    Address(Box<Operand<'t>>, i64),
    /// `[map, {x, y, ...}]`
    Tensor(Box<Operand<'t>>, Vec<Operand<'t>>),
    /// `r|p`
    Pair(Box<Operand<'t>>, Box<Operand<'t>>),
    Nothing,
}

pub(crate) fn read(path: &std::path::Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|why| format!("{}: {why}", path.display()))
}

/// The names of the kernels of a file.
pub(crate) fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.split(".visible .entry ").skip(1).filter_map(|rest| rest.split(['(', '\n']).next())
}

/// Takes a kernel apart. `file` is the name that errors give.
pub(crate) fn parse<'t>(text: &'t str, name: &str, file: &str) -> Result<Entry<'t>> {
    let head = format!(".visible .entry {name}(");
    let Some(at) = text.find(&head) else { return Err(format!("{file} has no kernel {name}")) };
    let mut reader = Reader::new(text, file, at + ".visible .entry ".len());
    reader.header(name.len())?;
    reader.body()?;
    Ok(reader.entry)
}

struct Reader<'t> {
    text: &'t str,
    file: String,
    at: usize,
    line: u32,
    entry: Entry<'t>,
    /// The scopes that are open, each with its number and what it declares.
    scopes: Vec<(u32, HashMap<String, Class>)>,
    scopes_so_far: u32,
    place: Place,
    /// What was inlined where: of the places that `.loc` names.
    inlined: HashMap<(u32, u32, u32), (u32, u32, u32)>,
}

/// Sources whose lines say little: where they are inlined is told.
fn is_glue(source: &str) -> bool {
    source.contains("/arch/") || source.contains("/include/") || source.contains("hopper_ops")
}

impl<'t> Reader<'t> {
    fn new(text: &'t str, file: &str, at: usize) -> Self {
        let mut sources = vec![String::new()];
        for line in text.lines().filter_map(|line| line.trim_start().strip_prefix(".file")) {
            let mut words = line.split_whitespace();
            let number = words.next().and_then(|n| n.parse::<usize>().ok()).unwrap_or(0);
            let name = words.next().unwrap_or_default().trim_matches([',', '"']);
            if number > MOST {
                continue;
            }
            if sources.len() <= number {
                sources.resize(number + 1, String::new());
            }
            sources[number] = name.to_owned();
        }
        let dynamic_shared = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(".extern .shared")?;
            rest.split_whitespace().last()?.strip_suffix("[];")
        });
        let entry = Entry {
            name: "",
            params: HashMap::new(),
            param_bytes: 0,
            max_threads: 1024,
            min_blocks: 1,
            registers: HashMap::new(),
            local_bytes: 0,
            statements: Vec::new(),
            labels: HashMap::new(),
            sources,
            dynamic_shared: dynamic_shared.collect(),
        };
        Self {
            text,
            file: file.to_owned(),
            at,
            line: 1 + text[..at].matches('\n').count() as u32,
            entry,
            scopes: Vec::new(),
            scopes_so_far: 0,
            place: Place::default(),
            inlined: HashMap::new(),
        }
    }

    fn error<T>(&self, what: impl std::fmt::Display) -> Result<T> {
        Err(format!("{}:{}: {what}", self.file, self.line))
    }

    /// From the name to the brace that opens the body.
    fn header(&mut self, name: usize) -> Result<()> {
        self.entry.name = &self.text[self.at..self.at + name];
        let Some(end) = self.text[self.at..].find('{').map(|end| self.at + end) else {
            return self.error("the file ends before the kernel's body");
        };
        let head = &self.text[self.at + name..end];
        for param in head.split(".param").skip(1) {
            let words: Vec<_> = param.split_whitespace().collect();
            let align = words.iter().position(|word| *word == ".align");
            let align = align.and_then(|at| words.get(at + 1)?.parse().ok());
            let Some(last) =
                words.iter().find(|w| !w.starts_with('.') && w.parse::<u32>().is_err())
            else {
                return self.error("a parameter without a name");
            };
            let last = last.trim_end_matches([',', ')']);
            let (name, bytes) = match last.split_once('[') {
                Some((name, count)) => (name, count.trim_end_matches(']').parse().unwrap_or(0)),
                None => (last, size_of_type(words[0].trim_start_matches('.')).unwrap_or(8)),
            };
            let align: u32 = align.unwrap_or(bytes.max(1));
            if bytes as usize > MOST || align as usize > MOST || !align.is_power_of_two() {
                return self.error(format!("the parameter {name}: {bytes} bytes, .align {align}"));
            }
            let offset = self.entry.param_bytes.next_multiple_of(align);
            self.entry.params.insert(name, (offset, bytes));
            self.entry.param_bytes = offset + bytes;
        }
        let numbers = |directive: &str| {
            let rest = head.split_once(directive)?.1;
            let line = rest.lines().next()?;
            let mut numbers = line.split(',').map(|n| n.trim().parse::<u32>().ok());
            numbers.try_fold(1u32, |all, n| all.checked_mul(n?))
        };
        self.entry.max_threads = numbers(".maxntid").unwrap_or(1024);
        self.entry.min_blocks = numbers(".minnctapersm").unwrap_or(1);
        self.line += self.text[self.at..end].matches('\n').count() as u32;
        self.at = end + 1;
        Ok(())
    }

    fn body(&mut self) -> Result<()> {
        let mut depth = 1;
        while depth > 0 {
            self.skip_space();
            let rest = &self.text[self.at..];
            match rest.as_bytes().first() {
                None => return self.error("the file ends within a kernel"),
                Some(b'{') => {
                    self.scopes_so_far += 1;
                    self.scopes.push((self.scopes_so_far, HashMap::new()));
                    self.at += 1;
                    depth += 1;
                }
                Some(b'}') => {
                    self.scopes.pop();
                    self.at += 1;
                    depth -= 1;
                }
                Some(_) if rest.starts_with(".loc") => {
                    let end = rest.find('\n').unwrap_or(rest.len());
                    self.location(&rest[..end]);
                    self.at += end;
                }
                Some(_) => self.statement_or_label()?,
            }
        }
        Ok(())
    }

    fn skip_space(&mut self) {
        let bytes = self.text.as_bytes();
        while self.at < bytes.len() {
            match bytes[self.at] {
                b'\n' => self.line += 1,
                b'/' if bytes.get(self.at + 1) == Some(&b'/') => {
                    while self.at + 1 < bytes.len() && bytes[self.at + 1] != b'\n' {
                        self.at += 1;
                    }
                }
                b' ' | b'\t' | b'\r' | b';' => (),
                _ => return,
            }
            self.at += 1;
        }
    }

    /// `.loc FILE LINE COLUMN[, function_name LABEL, inlined_at FILE LINE COLUMN]`
    fn location(&mut self, text: &str) {
        let numbers = |text: &str| {
            let mut numbers = text
                .split_whitespace()
                .map_while(|word| word.trim_end_matches(',').parse::<u32>().ok());
            Some((numbers.next()?, numbers.next()?, numbers.next()?))
        };
        let Some(here) = numbers(&text[".loc".len()..]) else { return };
        if let Some(outer) = text.split_once("inlined_at").and_then(|(_, rest)| numbers(rest)) {
            self.inlined.insert(here, outer);
        }
        let mut told = here;
        for _ in 0..8 {
            let source = self.entry.sources.get(told.0 as usize).map_or("", String::as_str);
            match self.inlined.get(&told) {
                Some(outer) if is_glue(source) => told = *outer,
                _ => break,
            }
        }
        self.place = Place { file: told.0, line: told.1 };
    }

    fn statement_or_label(&mut self) -> Result<()> {
        let rest = &self.text[self.at..];
        let word = rest.find(|c: char| c.is_whitespace() || c == ':' || c == ';');
        if let Some(end) = word
            && rest[end..].starts_with(':')
            && !rest[end..].starts_with("::")
            && !rest.starts_with('.')
        {
            let name = self.scoped(&rest[..end]);
            self.entry.labels.insert(name, self.entry.statements.len());
            self.at += end + 1;
            return Ok(());
        }
        let Some(end) = rest.find(';') else { return self.error("a statement without its end") };
        let text = &rest[..end];
        if text.starts_with('.') {
            self.directive(text)?;
        } else {
            self.statement(text)?;
        }
        self.line += text.matches('\n').count() as u32;
        self.at += end + 1;
        Ok(())
    }

    /// A label's name: those of a scope get its number.
    fn scoped(&self, name: &str) -> String {
        match self.scopes.last() {
            Some((number, _)) if !name.starts_with('$') => format!("{number}:{name}"),
            _ => name.to_owned(),
        }
    }

    fn directive(&mut self, text: &str) -> Result<()> {
        let mut words = text.split_whitespace();
        match words.next() {
            Some(".reg") => {
                let kind = words.next().unwrap_or_default();
                let Some(class) = class_of(kind.trim_start_matches('.')) else {
                    return self.error(format!("registers of type {kind}"));
                };
                let names = text.split_once(kind).map_or("", |(_, names)| names);
                names.split(',').try_for_each(|name| self.declare(name.trim(), class))
            }
            Some(".pragma") => Ok(()),
            Some(".local") => {
                let name = words.last().unwrap_or_default();
                let bytes =
                    name.split_once('[').and_then(|(_, n)| n.trim_end_matches(']').parse().ok());
                self.entry.local_bytes = bytes.unwrap_or(0);
                if self.entry.local_bytes as usize > MOST {
                    return self.error(format!("{text}: more than a thread has"));
                }
                Ok(())
            }
            other => self.error(format!("the directive {}", other.unwrap_or_default())),
        }
    }

    fn declare(&mut self, name: &str, class: Class) -> Result<()> {
        if let Some((stem, count)) = name.split_once('<') {
            let count = count.trim_end_matches('>').parse().unwrap_or(0);
            if count > MOST {
                return self.error(format!("{count} registers {stem}"));
            }
            for i in 0..count {
                self.entry.registers.insert(format!("{stem}{i}"), class);
            }
        } else if let Some((number, names)) = self.scopes.last_mut() {
            names.insert(name.to_owned(), class);
            self.entry.registers.insert(format!("{number}:{name}"), class);
        } else {
            self.entry.registers.insert(name.to_owned(), class);
        }
        Ok(())
    }

    fn statement(&mut self, text: &'t str) -> Result<()> {
        let (line, place) = (self.line, self.place);
        let mut text = text.trim();
        let mut guard = None;
        if let Some(rest) = text.strip_prefix('@') {
            let Some((name, rest)) = rest.split_once(char::is_whitespace) else {
                return self.error("a guard alone");
            };
            let is_negated = name.starts_with('!');
            guard = Some((self.register(name.trim_start_matches('!')), is_negated));
            text = rest.trim_start();
        }
        let (opcode, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let operands = if opcode.split('.').next() == Some("bra") {
            vec![Operand::Label(self.scoped(rest.trim()))]
        } else {
            split(rest).map(|part| self.operand(part)).collect::<Result<_>>()?
        };
        self.entry.statements.push(Statement { line, place, guard, opcode, operands });
        Ok(())
    }

    /// The name under which a register is declared.
    fn register(&self, name: &str) -> String {
        for (number, names) in self.scopes.iter().rev() {
            if names.contains_key(name) {
                return format!("{number}:{name}");
            }
        }
        name.to_owned()
    }

    fn operand(&self, text: &'t str) -> Result<Operand<'t>> {
        let text = text.trim();
        if let Some(inner) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
            let parts: Result<_> = split(inner).map(|part| self.operand(part)).collect();
            return Ok(Operand::Vector(parts?));
        }
        if let Some(inner) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            let mut parts = split(inner);
            let first = parts.next().unwrap_or_default().trim();
            if let Some(coordinates) = parts.next() {
                let Operand::Vector(coordinates) = self.operand(coordinates)? else {
                    return self.error(format!("coordinates {coordinates}"));
                };
                return Ok(Operand::Tensor(Box::new(self.operand(first)?), coordinates));
            }
            let (base, offset) = match first.rfind('+') {
                Some(at) if at > 0 => (&first[..at], first[at + 1..].trim()),
                _ => (first, "0"),
            };
            let Ok(offset) = offset.parse() else { return self.error(format!("offset {offset}")) };
            return Ok(Operand::Address(Box::new(self.operand(base)?), offset));
        }
        if let Some((a, b)) = text.split_once('|') {
            return Ok(Operand::Pair(Box::new(self.operand(a)?), Box::new(self.operand(b)?)));
        }
        if text == "_" {
            return Ok(Operand::Nothing);
        }
        let name = self.register(text);
        if self.entry.registers.contains_key(&name) {
            return Ok(Operand::Register(name));
        }
        if text.starts_with('%') {
            return Ok(Operand::Special(text));
        }
        if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
            return match number(text) {
                Some(number) => Ok(number),
                None => self.error(format!("the number {text}")),
            };
        }
        Ok(Operand::Symbol(text))
    }
}

/// At the commas that are in no brackets.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    let mut parts = text.split(move |c| {
        depth += i32::from(matches!(c, '{' | '[')) - i32::from(matches!(c, '}' | ']'));
        c == ',' && depth == 0
    });
    let mut only = parts.next().filter(|part| !part.trim().is_empty());
    std::iter::from_fn(move || only.take().or_else(|| parts.next()))
}

/// `12`, `-3`, `0x1fU`, `0f3F800000`.
fn number<'t>(text: &str) -> Option<Operand<'t>> {
    if let Some(bits) = text.strip_prefix("0f").or_else(|| text.strip_prefix("0F")) {
        return u32::from_str_radix(bits, 16).ok().map(Operand::Float);
    }
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let digits = digits.trim_end_matches('U');
    let value = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    let value = value.ok()?;
    Some(Operand::Integer(if negative { value.wrapping_neg() } else { value }))
}

pub(crate) fn size_of_type(name: &str) -> Option<u32> {
    let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    match digits {
        "8" => Some(1),
        "16" => Some(2),
        "32" => Some(4),
        "64" => Some(8),
        _ => None,
    }
}

fn class_of(kind: &str) -> Option<Class> {
    match kind {
        "pred" => Some(Class::Predicate),
        kind => match size_of_type(kind)? {
            8 => Some(Class::Double),
            bytes => Some(Class::Word(bytes)),
        },
    }
}
