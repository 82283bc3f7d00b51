//! Merging attention over parts of the keys: split-KV, shared prefixes, cascades.

use crate::device::cpu::Cpu;
use crate::error::{Error, Result};
use crate::kernels::{TensorMut, TensorRef};

/// The attention of the same queries over some of the keys.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// Outputs: `[tokens, heads, head_dim]`.
    pub o: TensorRef<'a>,
    /// LSE: `[tokens, heads]`.
    pub lse: &'a [f32],
}

/// Merges states over disjoint keys, in the order given, into the attention over all of them.
///
/// States whose LSE is -inf are neutral. A sink belongs to exactly one of the states.
///
/// # Errors
/// [`Error::InvalidArgument`] naming `states`, `o` or `lse`; nothing is written then.
pub fn merge(
    cpu: &Cpu,
    states: &[State<'_>],
    o: TensorMut<'_>,
    lse: Option<&mut [f32]>,
) -> Result<()> {
    let _ = (cpu, states, o, lse);
    Err(Error::argument("states", "draft"))
}
