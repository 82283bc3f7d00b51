//! Weights in memory of a GPU, as candle multiplies by them.

use std::sync::Arc;

use anyhow::{Result, bail};
use candle_core::quantized::QTensor;
use candle_core::{DType as Numbers, Tensor};
use inflight::kernels::DType;

use super::gpu::Gpu;
use crate::gguf::Gguf;
use crate::model::Model;
use crate::runner::Products;

/// The type of activations between products.
fn activations(products: Products) -> Numbers {
    match products {
        Products::F32 | Products::Int8 => Numbers::F32,
        Products::F16 => Numbers::F16,
        Products::Bf16 => Numbers::BF16,
    }
}

/// A matrix `[rows, cols]`.
pub enum Weight {
    /// Its numbers.
    Dense(Tensor),
    /// Its parts, one below the other, in the file's types.
    Quantized(Vec<QTensor>),
}

impl Weight {
    fn new(parts: Vec<QTensor>, products: Products, gpu: &Gpu) -> Result<Self> {
        if products == Products::Int8 && parts.iter().all(is_quantized) {
            return Ok(Self::Quantized(parts));
        }
        let dense = |part: &QTensor| part.dequantize(&gpu.tensors)?.to_dtype(activations(products));
        let parts = parts.iter().map(dense).collect::<Result<Vec<_>, _>>()?;
        Ok(Self::Dense(Tensor::cat(&parts, 0)?))
    }

    /// `[tokens, cols]` times its rows: `[tokens, rows]`.
    pub fn multiply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Dense(weight) => x.matmul(&weight.t()?)?,
            Self::Quantized(parts) => {
                let parts = parts.iter().map(|part| x.apply_op1_no_bwd(part));
                let mut parts = parts.collect::<Result<Vec<_>, _>>()?;
                match parts.len() {
                    1 => parts.remove(0),
                    _ => Tensor::cat(&parts, 1)?,
                }
            }
        })
    }

    /// The products with its upper and with its lower `rows` rows: each for itself, since candle
    /// works best on tensors without gaps.
    pub fn multiply_halves(&self, x: &Tensor, rows: usize) -> Result<[Tensor; 2]> {
        let [upper, lower] = match self {
            Self::Dense(weight) => [0, rows].map(|from| {
                let half = weight.narrow(0, from, rows)?;
                x.matmul(&half.t()?)
            }),
            Self::Quantized(parts) => match &parts[..] {
                [upper, lower] => [upper, lower].map(|part| x.apply_op1_no_bwd(part)),
                parts => bail!("{} tensors, and they are two", parts.len()),
            },
        };
        Ok([upper?, lower?])
    }

    /// Rows of it.
    fn rows(&self, rows: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Dense(weight) => weight.index_select(rows, 0)?,
            Self::Quantized(parts) => match &parts[..] {
                [part] => part.embedding(rows)?,
                parts => bail!("an embedding of {} tensors", parts.len()),
            },
        })
    }

    /// Bytes of it.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
            Self::Quantized(parts) => parts.iter().map(QTensor::storage_size_in_bytes).sum(),
        }
    }
}

/// Whether it is not plain numbers, which candle multiplies by as such.
fn is_quantized(tensor: &QTensor) -> bool {
    use candle_core::quantized::GgmlDType::{BF16, F16, F32};
    !matches!(tensor.dtype(), F32 | F16 | BF16)
}

/// A model's weights in memory of a GPU.
pub struct Weights {
    /// The weights; the vectors are in the host's memory.
    pub model: Model<Weight>,
    /// Where.
    pub gpu: Arc<Gpu>,
    products: Products,
}

impl Weights {
    /// Reads them.
    pub fn load(gguf: &mut Gguf, gpu: Arc<Gpu>, products: Products) -> Result<Self> {
        let model =
            Model::load_with(gguf, &gpu.tensors, |parts| Weight::new(parts, products, &gpu))?;
        // What dequantising took is there for the cache.
        gpu.trim()?;
        Ok(Self { model, gpu, products })
    }

    /// How products are computed.
    pub fn products(&self) -> Products {
        self.products
    }

    /// The type of queries, for a cache of a type.
    pub(super) fn attention_dtype(&self, kv_dtype: DType) -> Result<DType> {
        Ok(match (kv_dtype, self.products) {
            (DType::F32, _) => bail!("on a GPU a cache is f16, bf16 or fp8"),
            (DType::F16 | DType::Bf16, _) => kv_dtype,
            (DType::Fp8E4m3, Products::Bf16) => DType::Bf16,
            (DType::Fp8E4m3, _) => DType::F16,
        })
    }

    /// The first activations of tokens.
    pub(super) fn embed(&self, tokens: &Tensor) -> Result<Tensor> {
        Ok(self.model.embedding.rows(tokens)?.to_dtype(activations(self.products))?)
    }

    /// From activations to logits.
    pub(super) fn head(&self) -> &Weight {
        self.model.head.as_ref().unwrap_or(&self.model.embedding)
    }

    /// Numbers that activations are multiplied by.
    pub(super) fn vector(&self, values: &[f32]) -> Result<Tensor> {
        let values = Tensor::from_slice(values, values.len(), &self.gpu.tensors)?;
        Ok(values.to_dtype(activations(self.products))?)
    }
}
