//! The weights of a Llama model.

use anyhow::{Context, Result, bail};
use candle_core::Device;
use candle_core::quantized::QTensor;
use inflight::kernels::rope::RopeConfig;

use crate::gguf::{Gguf, Shape};
use crate::matmul::{Arena, Matrix, Precision};

/// A Llama model's weights; `M` is a matrix as one device multiplies by it.
pub struct Model<M = Matrix> {
    /// Its numbers.
    pub shape: Shape,
    /// `[vocab, hidden]`.
    pub embedding: M,
    /// `[vocab, hidden]`; `None` where it is the embedding.
    pub head: Option<M>,
    /// `[hidden]`.
    pub norm: Vec<f32>,
    /// The layers in order.
    pub layers: Vec<Layer<M>>,
    /// What the frequencies of the rotation are divided by, one a pair; empty for 1.
    rope_factors: Vec<f32>,
}

/// A layer's weights; products over the same input are one matrix.
pub struct Layer<M = Matrix> {
    /// `[hidden]`.
    pub attention_norm: Vec<f32>,
    /// Queries, keys, values: `[q_dim + 2 kv_dim, hidden]`.
    pub qkv: M,
    /// `[hidden, q_dim]`.
    pub out: M,
    /// `[hidden]`.
    pub feed_forward_norm: Vec<f32>,
    /// Gates, then ups: `[2 feed_forward, hidden]`.
    pub gate_up: M,
    /// `[hidden, feed_forward]`.
    pub down: M,
}

impl Model {
    /// Reads the weights, for a processor's products of a precision.
    pub fn load(gguf: &mut Gguf, precision: Precision) -> Result<Self> {
        let mut arena = Arena::default();
        Self::load_with(gguf, &Device::Cpu, |parts| {
            Ok(Matrix::new(&parts.iter().collect::<Vec<_>>(), precision, &mut arena)?)
        })
    }

    /// Bytes of all weights as they are kept.
    pub fn bytes(&self) -> usize {
        self.matrices().map(Matrix::bytes).sum()
    }
}

impl<M> Model<M> {
    /// Reads the weights to a device; `make` makes a matrix of tensors that lie one below the other.
    /// A file with a tensor that has no place here is refused: without it the text would be another.
    pub fn load_with(
        gguf: &mut Gguf,
        device: &Device,
        mut make: impl FnMut(Vec<QTensor>) -> Result<M>,
    ) -> Result<Self> {
        let shape = gguf.shape()?;
        let mut matrix = |gguf: &mut Gguf, names: &[String], rows, cols| {
            make(tensors(gguf, names, (rows, cols), device)?)
        };
        let (hidden, ffn) = (shape.hidden, shape.feed_forward);
        let mut layer = |gguf: &mut Gguf, at: usize| -> Result<Layer<M>> {
            let name = |part: &str| format!("blk.{at}.{part}.weight");
            let mut matrix = |parts: &[&str], rows, cols| {
                matrix(gguf, &parts.iter().map(|part| name(part)).collect::<Vec<_>>(), rows, cols)
            };
            let qkv_rows = shape.q_dim() + 2 * shape.kv_dim();
            let qkv = matrix(&["attn_q", "attn_k", "attn_v"], qkv_rows, hidden)?;
            let out = matrix(&["attn_output"], hidden, shape.q_dim())?;
            let gate_up = matrix(&["ffn_gate", "ffn_up"], 2 * ffn, hidden)?;
            let down = matrix(&["ffn_down"], hidden, ffn)?;
            Ok(Layer {
                attention_norm: vector(gguf, &name("attn_norm"), hidden)?,
                qkv,
                out,
                feed_forward_norm: vector(gguf, &name("ffn_norm"), hidden)?,
                gate_up,
                down,
            })
        };
        let layers = (0..shape.layers).map(|at| layer(gguf, at)).collect::<Result<_>>()?;
        let embedding = matrix(gguf, &["token_embd.weight".to_owned()], shape.vocab, hidden)?;
        let head = match gguf.has_tensor("output.weight") {
            true => Some(matrix(gguf, &["output.weight".to_owned()], shape.vocab, hidden)?),
            false => None,
        };
        let norm = vector(gguf, "output_norm.weight", hidden)?;
        let rope_factors = match gguf.has_tensor("rope_freqs.weight") {
            true => vector(gguf, "rope_freqs.weight", shape.rotary_dim / 2)?,
            false => Vec::new(),
        };
        if let Some(name) = gguf.unread() {
            bail!("the model has a tensor `{name}`, which this program does not know");
        }
        Ok(Self { shape, embedding, head, norm, layers, rope_factors })
    }

    /// The rotation of positions below `positions`: `[positions, rotary_dim]`, the cosines of a
    /// position's angles and then their sines.
    pub fn rope_table(&self, positions: usize) -> Result<Vec<f32>> {
        let rope = RopeConfig::new(self.shape.rotary_dim, self.shape.rope_theta);
        if self.rope_factors.is_empty() {
            return Ok(rope.table(positions)?);
        }
        let (dim, theta) = (self.shape.rotary_dim as f64, f64::from(self.shape.rope_theta));
        let frequency = |pair: usize| theta.powf(-2.0 * pair as f64 / dim);
        let factors = self.rope_factors.iter().enumerate();
        let frequencies: Vec<f64> =
            factors.map(|(pair, &by)| frequency(pair) / f64::from(by)).collect();
        let mut table = Vec::with_capacity(positions * self.shape.rotary_dim);
        for position in 0..positions {
            let angles = frequencies.iter().map(|frequency| position as f64 * frequency);
            table.extend(angles.clone().map(|angle| angle.cos() as f32));
            table.extend(angles.map(|angle| angle.sin() as f32));
        }
        Ok(table)
    }

    /// All matrices.
    pub fn matrices(&self) -> impl Iterator<Item = &M> {
        let layers = self.layers.iter().flat_map(|l| [&l.qkv, &l.out, &l.gate_up, &l.down]);
        layers.chain(self.head.as_ref()).chain([&self.embedding])
    }
}

/// Tensors that lie one below the other.
fn tensors(
    gguf: &mut Gguf,
    names: &[String],
    wanted: (usize, usize),
    device: &Device,
) -> Result<Vec<QTensor>> {
    let parts = names.iter().map(|name| gguf.tensor(name, device));
    let parts = parts.collect::<Result<Vec<_>>>()?;
    let (mut rows, what) = (0, || names.join(", "));
    for part in &parts {
        let (has, cols) = part.shape().dims2().with_context(what)?;
        if cols != wanted.1 {
            bail!("{}: {cols} columns, and {} were told", what(), wanted.1);
        }
        rows += has;
    }
    if rows != wanted.0 {
        bail!("{}: {rows} rows, and {} were told", what(), wanted.0);
    }
    Ok(parts)
}

fn vector(gguf: &mut Gguf, name: &str, len: usize) -> Result<Vec<f32>> {
    let vector = gguf.floats(name)?;
    if vector.len() != len {
        bail!("{name}: {} numbers, and {len} were told", vector.len());
    }
    Ok(vector)
}
