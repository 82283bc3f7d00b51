//! Attention to compare kernels with: random cases, a plain f64 oracle, an implementation with no
//! more precision than a kernel, and the rule by which results are judged.
//!
//! Nothing here uses the kernels' own arithmetic: caches are read element by element through
//! tables and strides, masks bit by bit.

#![allow(dead_code, unused_imports, reason = "each test binary uses its part")]

mod case;
mod compare;
mod naive;
mod numbers;
mod oracle;
mod spec;

pub(crate) use case::{Answer, Case, Mask, OnCpu};
pub(crate) use compare::{Verdict, judge};
pub(crate) use naive::{Defect, naive};
pub(crate) use numbers::{Tokens, unit_roundoff};
pub(crate) use oracle::{Keys, Reference, Terms, oracle, softmax};
pub(crate) use spec::{Alibi, Layout, MaskKind, Poison, Scales, Sinks, Spec, TokenLayout};
