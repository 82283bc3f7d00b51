//! The executor by small kernels in PTX of their own, on a machine of plain memory.

mod asynchronous;
mod control;
mod lint;
mod machine;
mod products;
mod text;
