//! A kernel ready to be executed: operands are numbers of registers, opcodes are what to do.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use crate::lanes::{Function, function};
use crate::operations::{self, Op};
use crate::parse::{Class, Entry, Operand, Place, Result, Statement};
use crate::warp::Registers;

/// Shared memory begins here: the first KiB is the system's, so that 0 is never an address.
pub(crate) const SHARED_BASE: u32 = 1024;

/// A register by its number among those of its width, or a constant that is kept like one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct R32(pub(crate) u32);
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct R64(pub(crate) u32);
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct P(pub(crate) u32);

/// A register of either width, as what is loaded, stored or atomically changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Any {
    Word(R32),
    Double(R64),
    /// What is loaded is thrown away.
    Nothing,
}

/// What differs from thread to thread, or from block to block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    Laneid,
    Warpid,
    Smid,
}

/// Where an instruction stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub(crate) ptx: u32,
    pub(crate) place: Place,
}

/// A guard's predicate; negated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard {
    pub(crate) predicate: P,
    pub(crate) is_negated: bool,
}

pub(crate) struct Instruction {
    pub(crate) guard: Option<Guard>,
    pub(crate) op: Op,
}

/// A kernel, with the counts of how often each instruction was executed.
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) file: String,
    pub(crate) param_bytes: u32,
    pub(crate) max_threads: u32,
    pub(crate) min_blocks: u32,
    pub(crate) local_bytes: u32,
    pub(crate) code: Vec<Instruction>,
    pub(crate) opcodes: Vec<String>,
    pub(crate) lines: Vec<Line>,
    pub(crate) sources: Vec<String>,
    pub(crate) words: u32,
    pub(crate) doubles: u32,
    pub(crate) predicates: u32,
    pub(crate) constants: Vec<(R32, u32)>,
    pub(crate) wide_constants: Vec<(R64, u64)>,
    pub(crate) predicate_constants: Vec<(P, u32)>,
    pub(crate) specials: Vec<(R32, Special)>,
    /// By warps, and of branches those that some lane took.
    pub(crate) executed: Vec<Cell<u64>>,
    pub(crate) taken: Vec<Cell<u64>>,
    pub(crate) has_wgmma: bool,
    /// Of warps that have ended, for others.
    pub(crate) spare: RefCell<Vec<Registers>>,
    /// Its first instruction's number among those of all kernels.
    pub(crate) first_pc: u32,
}

impl Program {
    /// `file` is the name that errors and places give.
    pub(crate) fn new(entry: &Entry<'_>, file: &str) -> Result<Self> {
        let mut lowering = Lowering::new(entry, file);
        let mut code = Vec::with_capacity(entry.statements.len());
        for statement in &entry.statements {
            lowering.line = statement.line;
            lowering.immediate = if statement.opcode.ends_with("16") { 0xffff } else { !0 };
            let guard = match &statement.guard {
                Some((name, is_negated)) => Some(Guard {
                    predicate: lowering.named_predicate(name)?,
                    is_negated: *is_negated,
                }),
                None => None,
            };
            code.push(Instruction { guard, op: lowering.op(statement)? });
        }
        let zeros = || vec![Cell::new(0); code.len()];
        Ok(Self {
            name: entry.name.to_owned(),
            file: file.to_owned(),
            param_bytes: entry.param_bytes,
            max_threads: entry.max_threads,
            min_blocks: entry.min_blocks,
            local_bytes: entry.local_bytes,
            opcodes: entry.statements.iter().map(|s| s.opcode.to_owned()).collect(),
            lines: entry.statements.iter().map(|s| Line { ptx: s.line, place: s.place }).collect(),
            sources: entry.sources.clone(),
            words: lowering.words,
            doubles: lowering.doubles,
            predicates: lowering.predicates,
            constants: lowering.constants.into_iter().map(|(value, at)| (at, value)).collect(),
            wide_constants: lowering.wide_constants.into_iter().map(|(v, at)| (at, v)).collect(),
            predicate_constants: lowering
                .predicate_constants
                .into_iter()
                .map(|(v, at)| (at, v))
                .collect(),
            specials: lowering.specials.into_iter().map(|(special, at)| (at, special)).collect(),
            executed: zeros(),
            taken: zeros(),
            has_wgmma: code.iter().any(|i| matches!(i.op, Op::Wgmma(_))),
            code,
            spare: RefCell::default(),
            first_pc: 0,
        })
    }

    /// `decode.cuh:43 (decode_bf16_same_d128.80.ptx:1234)`
    pub(crate) fn place(&self, instruction: usize) -> String {
        let Some(line) = self.lines.get(instruction) else {
            return format!("{}: its end", self.file);
        };
        let ptx = format!("{}:{}", self.file, line.ptx);
        match self.source(line.place) {
            Some(source) => format!("{source} ({ptx})"),
            None => ptx,
        }
    }

    /// `decode.cuh:43`
    pub(crate) fn source(&self, place: Place) -> Option<String> {
        let path = self.sources.get(place.file as usize).filter(|path| !path.is_empty())?;
        Some(format!("{}:{}", path.rsplit('/').next().unwrap_or(path), place.line))
    }
}

/// Gives registers and constants their numbers.
pub(crate) struct Lowering<'e, 't> {
    pub(crate) entry: &'e Entry<'t>,
    file: &'e str,
    pub(crate) line: u32,
    /// Of numbers that are written out: those of 16 bits have no sign above.
    immediate: u32,
    registers: HashMap<&'e str, u32>,
    words: u32,
    doubles: u32,
    predicates: u32,
    constants: HashMap<u32, R32>,
    wide_constants: HashMap<u64, R64>,
    predicate_constants: HashMap<u32, P>,
    specials: HashMap<Special, R32>,
}

impl<'e, 't> Lowering<'e, 't> {
    fn new(entry: &'e Entry<'t>, file: &'e str) -> Self {
        Self {
            entry,
            file,
            line: 0,
            immediate: !0,
            registers: HashMap::new(),
            words: 0,
            doubles: 0,
            predicates: 0,
            constants: HashMap::new(),
            wide_constants: HashMap::new(),
            predicate_constants: HashMap::new(),
            specials: HashMap::new(),
        }
    }

    pub(crate) fn error<T>(&self, what: impl std::fmt::Display) -> Result<T> {
        Err(format!("{}:{}: {what}", self.file, self.line))
    }

    fn op(&mut self, statement: &'e Statement<'t>) -> Result<Op> {
        if let Some(op) = operations::lower(self, statement)? {
            return Ok(op);
        }
        let Some(function) = function(statement.opcode) else {
            return self.error(format!("the executor has no opcode {}", statement.opcode));
        };
        self.computation(function, statement)
    }

    fn computation(&mut self, function: Function, statement: &'e Statement<'t>) -> Result<Op> {
        let o = &statement.operands;
        if o.len() != function.operands() {
            return self.error(format!("{} with {} operands", statement.opcode, o.len()));
        }
        Ok(match function {
            Function::One(f) => Op::One(f, self.word(&o[0])?, self.word(&o[1])?),
            Function::Two(f) => {
                Op::Two(f, self.word(&o[0])?, [self.word(&o[1])?, self.word(&o[2])?])
            }
            Function::Three(f) => Op::Three(
                f,
                self.word(&o[0])?,
                [self.word(&o[1])?, self.word(&o[2])?, self.word(&o[3])?],
            ),
            Function::OneDouble(f) => Op::OneDouble(f, self.double(&o[0])?, self.double(&o[1])?),
            Function::TwoDouble(f) => {
                Op::TwoDouble(f, self.double(&o[0])?, [self.double(&o[1])?, self.double(&o[2])?])
            }
            Function::ThreeDouble(f) => Op::ThreeDouble(
                f,
                self.double(&o[0])?,
                [self.double(&o[1])?, self.double(&o[2])?, self.double(&o[3])?],
            ),
            Function::DoubleBy(f) => {
                Op::DoubleBy(f, self.double(&o[0])?, self.double(&o[1])?, self.word(&o[2])?)
            }
            Function::Widen(f) => Op::Widen(f, self.double(&o[0])?, self.word(&o[1])?),
            Function::WidenTwo(f) => {
                Op::WidenTwo(f, self.double(&o[0])?, [self.word(&o[1])?, self.word(&o[2])?])
            }
            Function::WidenThree(f) => Op::WidenThree(
                f,
                self.double(&o[0])?,
                [self.word(&o[1])?, self.word(&o[2])?],
                self.double(&o[3])?,
            ),
            Function::Narrow(f) => Op::Narrow(f, self.word(&o[0])?, self.double(&o[1])?),
            Function::Compare(f) => {
                Op::Compare(f, self.predicate(&o[0])?, [self.word(&o[1])?, self.word(&o[2])?])
            }
            Function::CompareDouble(f) => Op::CompareDouble(
                f,
                self.predicate(&o[0])?,
                [self.double(&o[1])?, self.double(&o[2])?],
            ),
            Function::Select => Op::Select(
                self.word(&o[0])?,
                [self.word(&o[1])?, self.word(&o[2])?],
                self.predicate(&o[3])?,
            ),
            Function::SelectDouble => Op::SelectDouble(
                self.double(&o[0])?,
                [self.double(&o[1])?, self.double(&o[2])?],
                self.predicate(&o[3])?,
            ),
            Function::PredicateOne(f) => {
                Op::PredicateOne(f, self.predicate(&o[0])?, self.predicate(&o[1])?)
            }
            Function::PredicateTwo(f) => Op::PredicateTwo(
                f,
                self.predicate(&o[0])?,
                [self.predicate(&o[1])?, self.predicate(&o[2])?],
            ),
        })
    }

    fn number_of(&mut self, name: &'e str, class: Class) -> u32 {
        if let Some(number) = self.registers.get(name) {
            return *number;
        }
        let next = match class {
            Class::Predicate => &mut self.predicates,
            Class::Word(_) => &mut self.words,
            Class::Double => &mut self.doubles,
        };
        *next += 1;
        self.registers.insert(name, *next - 1);
        *next - 1
    }

    fn class(&self, name: &str) -> Result<Class> {
        match self.entry.registers.get(name) {
            Some(class) => Ok(*class),
            None => self.error(format!("{name} is no register")),
        }
    }

    pub(crate) fn constant(&mut self, value: u32) -> R32 {
        let next = R32(self.words);
        let at = *self.constants.entry(value).or_insert(next);
        self.words += u32::from(at == next);
        at
    }

    pub(crate) fn wide_constant(&mut self, value: u64) -> R64 {
        let next = R64(self.doubles);
        let at = *self.wide_constants.entry(value).or_insert(next);
        self.doubles += u32::from(at == next);
        at
    }

    fn special(&mut self, name: &str) -> Result<R32> {
        let axis = |name: &str| "xyz".find(name);
        let special = match name.trim_start_matches('%').split_once('.') {
            Some(("tid", a)) => axis(a).map(Special::Tid),
            Some(("ntid", a)) => axis(a).map(Special::Ntid),
            Some(("ctaid", a)) => axis(a).map(Special::Ctaid),
            Some(("nctaid", a)) => axis(a).map(Special::Nctaid),
            None if name == "%laneid" => Some(Special::Laneid),
            None if name == "%warpid" => Some(Special::Warpid),
            None if name == "%smid" => Some(Special::Smid),
            _ => None,
        };
        let Some(special) = special else {
            return self.error(format!("the special register {name}"));
        };
        let next = R32(self.words);
        let at = *self.specials.entry(special).or_insert(next);
        self.words += u32::from(at == next);
        Ok(at)
    }

    /// A register of 32 bits or fewer, or what is read as one.
    pub(crate) fn word(&mut self, operand: &'e Operand<'t>) -> Result<R32> {
        match operand {
            Operand::Register(name) => match self.class(name)? {
                class @ Class::Word(_) => Ok(R32(self.number_of(name, class))),
                class => self.error(format!("{name} is not of 32 bits but a {class:?}")),
            },
            Operand::Integer(value) => Ok(self.constant(*value as u32 & self.immediate)),
            Operand::Float(value) => Ok(self.constant(*value)),
            Operand::Special(name) => self.special(name),
            Operand::Symbol(name) => match self.symbol(name) {
                Some(at) => Ok(self.constant(at as u32)),
                None => self.error(format!("{name} is declared nowhere")),
            },
            other => self.error(format!("{other:?} is no number of 32 bits")),
        }
    }

    pub(crate) fn double(&mut self, operand: &'e Operand<'t>) -> Result<R64> {
        match operand {
            Operand::Register(name) => match self.class(name)? {
                Class::Double => Ok(R64(self.number_of(name, Class::Double))),
                class => self.error(format!("{name} is not of 64 bits but a {class:?}")),
            },
            Operand::Integer(value) => Ok(self.wide_constant(*value)),
            Operand::Symbol(name) => match self.symbol(name) {
                Some(at) => Ok(self.wide_constant(at)),
                None => self.error(format!("{name} is declared nowhere")),
            },
            other => self.error(format!("{other:?} is no number of 64 bits")),
        }
    }

    /// How wide a register is declared; of others nothing is said.
    pub(crate) fn bytes(&self, operand: &Operand<'t>) -> Option<u32> {
        let Operand::Register(name) = operand else { return None };
        match self.entry.registers.get(name)? {
            Class::Word(bytes) => Some(*bytes),
            Class::Double => Some(8),
            Class::Predicate => None,
        }
    }

    pub(crate) fn any(&mut self, operand: &'e Operand<'t>) -> Result<Any> {
        match operand {
            Operand::Nothing => Ok(Any::Nothing),
            Operand::Register(name) if self.class(name)? == Class::Double => {
                Ok(Any::Double(self.double(operand)?))
            }
            _ => Ok(Any::Word(self.word(operand)?)),
        }
    }

    pub(crate) fn predicate(&mut self, operand: &'e Operand<'t>) -> Result<P> {
        match operand {
            Operand::Register(name) => self.named_predicate(name),
            Operand::Integer(value) => {
                let value = if *value == 0 { 0 } else { !0 };
                let next = P(self.predicates);
                let at = *self.predicate_constants.entry(value).or_insert(next);
                self.predicates += u32::from(at == next);
                Ok(at)
            }
            other => self.error(format!("{other:?} is no predicate")),
        }
    }

    pub(crate) fn named_predicate(&mut self, name: &'e str) -> Result<P> {
        match self.class(name)? {
            Class::Predicate => Ok(P(self.number_of(name, Class::Predicate))),
            class => self.error(format!("{name} is not a predicate but a {class:?}")),
        }
    }

    /// An address of shared memory, or a parameter's place in the space of parameters.
    pub(crate) fn symbol(&self, name: &str) -> Option<u64> {
        if self.entry.dynamic_shared.contains(&name) {
            return Some(u64::from(SHARED_BASE));
        }
        self.entry.params.get(name).map(|(offset, _)| u64::from(*offset))
    }

    pub(crate) fn integer(&self, operand: &Operand<'t>) -> Result<u64> {
        match operand {
            Operand::Integer(value) => Ok(*value),
            other => self.error(format!("{other:?} is no number that is known")),
        }
    }

    pub(crate) fn label(&self, operand: &Operand<'t>) -> Result<u32> {
        let Operand::Label(name) = operand else { return self.error("a branch to no label") };
        let plain = name.split_once(':').map_or(name.as_str(), |(_, plain)| plain);
        match self.entry.labels.get(name).or_else(|| self.entry.labels.get(plain)) {
            Some(at) => Ok(*at as u32),
            None => self.error(format!("no label {plain}")),
        }
    }
}
