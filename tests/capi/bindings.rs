//! Bindings against `tests/data/abi.txt`: structs that they declare again, field by field, and places
//! where they copy a struct, which are to know every field of it.
//!
//! A field that is added to the ABI fails here until each binding has it, or says why it has not.

mod abi;
mod cpp;
mod go;
mod python;
mod source;
