//! Models of the Llama architecture in GGUF files: what they are, and their weights.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::Device;
use candle_core::quantized::QTensor;
use candle_core::quantized::gguf_file::{Content, Value};

/// The numbers of a model.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Layers.
    pub layers: usize,
    /// Elements of a token between layers.
    pub hidden: usize,
    /// Elements of a token within a feed-forward network.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Elements a head.
    pub head_dim: usize,
    /// Elements of a head that positions rotate.
    pub rotary_dim: usize,
    /// Base of the rotation's frequencies.
    pub rope_theta: f32,
    /// Added to the mean square before its root is taken.
    pub rms_eps: f32,
    /// Tokens that it was trained for.
    pub context: usize,
    /// Tokens that there are.
    pub vocab: usize,
}

impl Shape {
    /// Elements of a token's queries.
    pub fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Elements of a token's keys, and of its values.
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// An open file.
pub struct Gguf {
    content: Content,
    reader: BufReader<File>,
}

impl Gguf {
    /// Opens a file and reads its directory.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut reader = BufReader::new(file);
        let content = Content::read(&mut reader)
            .with_context(|| format!("{} is no GGUF file", path.display()))?;
        Ok(Self { content, reader })
    }

    /// The model's numbers.
    pub fn shape(&self) -> Result<Shape> {
        let architecture = self.text("general.architecture").unwrap_or("none");
        if architecture != "llama" {
            bail!("the model's architecture is `{architecture}`; only `llama` is known");
        }
        let number = |key: &str| self.number(&format!("llama.{key}"));
        let heads = number("attention.head_count")?;
        let hidden = number("embedding_length")?;
        if heads == 0 || hidden == 0 {
            bail!("the model has {heads} heads and {hidden} elements");
        }
        let head_dim = number("attention.key_length").unwrap_or(hidden / heads);
        let shape = Shape {
            layers: number("block_count")?,
            hidden,
            feed_forward: number("feed_forward_length")?,
            heads,
            kv_heads: number("attention.head_count_kv").unwrap_or(heads),
            head_dim,
            rotary_dim: number("rope.dimension_count").unwrap_or(head_dim),
            rope_theta: self.float("llama.rope.freq_base").unwrap_or(10_000.0),
            rms_eps: self.float("llama.attention.layer_norm_rms_epsilon")?,
            context: number("context_length")?,
            vocab: self.tensor_rows("token_embd.weight")?,
        };
        if number("expert_count").is_ok_and(|experts| experts > 0) {
            bail!("the model is a mixture of experts, which this program does not run");
        }
        if let Some(scaling) = self.text("llama.rope.scaling.type").filter(|&s| s != "none") {
            bail!("the model scales its rotation by `{scaling}`, which this program does not know");
        }
        Ok(shape)
    }

    /// A tensor of the file, in the type in which it is stored.
    pub fn tensor(&mut self, name: &str) -> Result<QTensor> {
        self.content
            .tensor(&mut self.reader, name, &Device::Cpu)
            .with_context(|| format!("the model has no tensor `{name}`"))
    }

    /// A tensor as numbers.
    pub fn floats(&mut self, name: &str) -> Result<Vec<f32>> {
        Ok(self.tensor(name)?.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?)
    }

    /// Whether there is a tensor of this name.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    fn tensor_rows(&self, name: &str) -> Result<usize> {
        let info = self.content.tensor_infos.get(name);
        let info = info.with_context(|| format!("the model has no tensor `{name}`"))?;
        Ok(info.shape.dim(0)?)
    }

    /// A count among the metadata.
    pub fn number(&self, key: &str) -> Result<usize> {
        let number = match self.value(key)? {
            Value::U8(n) => u64::from(*n),
            Value::U16(n) => u64::from(*n),
            Value::U32(n) => u64::from(*n),
            Value::U64(n) => *n,
            Value::I32(n) if *n >= 0 => *n as u64,
            Value::I64(n) if *n >= 0 => *n as u64,
            other => bail!("the model's `{key}` is {other:?}, not a count"),
        };
        usize::try_from(number).with_context(|| format!("the model's `{key}` is {number}"))
    }

    fn float(&self, key: &str) -> Result<f32> {
        Ok(self.value(key)?.to_f32()?)
    }

    /// Text among the metadata.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.content.metadata.get(key)?.to_string().ok().map(String::as_str)
    }

    /// A flag among the metadata.
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.content.metadata.get(key)?.to_bool().ok()
    }

    /// An array among the metadata.
    pub fn array(&self, key: &str) -> Result<&[Value]> {
        Ok(self.value(key)?.to_vec()?)
    }

    fn value(&self, key: &str) -> Result<&Value> {
        self.content.metadata.get(key).with_context(|| format!("the model says nothing of `{key}`"))
    }
}
