//! Models of the Llama architecture in GGUF files: what they are, and their weights.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

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
    path: PathBuf,
    content: Content,
    reader: BufReader<File>,
    /// Tensors that were not asked for.
    unread: BTreeSet<String>,
}

impl Gguf {
    /// Opens a file and reads its directory.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut reader = BufReader::new(file);
        let content = Content::read(&mut reader)
            .with_context(|| format!("{} is no GGUF file", path.display()))?;
        let unread = content.tensor_infos.keys().cloned().collect();
        Ok(Self { path: path.to_owned(), content, reader, unread })
    }

    /// Which file it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's numbers.
    pub fn shape(&self) -> Result<Shape> {
        let architecture = self.text("general.architecture").unwrap_or("none");
        if architecture != "llama" {
            bail!("the model's architecture is `{architecture}`; only `llama` is known");
        }
        let number = |key: &str| self.number(&format!("llama.{key}"));
        // What a key says is never ignored: only where it is absent is there a default.
        let optional = |key: &str, default: usize| match self.has(&format!("llama.{key}")) {
            true => number(key),
            false => Ok(default),
        };
        let heads = number("attention.head_count")?;
        let hidden = number("embedding_length")?;
        if heads == 0 || hidden == 0 {
            bail!("the model has {heads} heads and {hidden} elements");
        }
        let head_dim = optional("attention.key_length", hidden / heads)?;
        let shape = Shape {
            layers: number("block_count")?,
            hidden,
            feed_forward: number("feed_forward_length")?,
            heads,
            kv_heads: optional("attention.head_count_kv", heads)?,
            head_dim,
            rotary_dim: optional("rope.dimension_count", head_dim)?,
            rope_theta: self.float("llama.rope.freq_base", Some(10_000.0))?,
            rms_eps: self.float("llama.attention.layer_norm_rms_epsilon", None)?,
            context: number("context_length")?,
            vocab: self.vocab()?,
        };
        if optional("expert_count", 0)? > 0 {
            bail!("the model is a mixture of experts, which this program does not run");
        }
        if let Some(scaling) = self.text("llama.rope.scaling.type").filter(|&s| s != "none") {
            bail!("the model scales its rotation by `{scaling}`, which this program does not know");
        }
        let linear = self.float("llama.rope.scale_linear", Some(1.0))?;
        if linear != 1.0 {
            bail!("the model divides its positions by {linear}, which this program does not do");
        }
        Ok(shape)
    }

    /// A tensor of the file, in the type in which it is stored.
    pub fn tensor(&mut self, name: &str, device: &Device) -> Result<QTensor> {
        self.unread.remove(name);
        self.content
            .tensor(&mut self.reader, name, device)
            .with_context(|| format!("the model has no tensor `{name}`"))
    }

    /// A tensor as numbers.
    pub fn floats(&mut self, name: &str) -> Result<Vec<f32>> {
        Ok(self.tensor(name, &Device::Cpu)?.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?)
    }

    /// A tensor that was not read yet.
    pub fn unread(&self) -> Option<&str> {
        self.unread.first().map(String::as_str)
    }

    /// Bytes of all tensors in the file.
    pub fn tensor_bytes(&self) -> usize {
        let bytes = self.content.tensor_infos.values().map(|info| {
            let kind = info.ggml_dtype;
            info.shape.elem_count() / kind.block_size() * kind.type_size()
        });
        bytes.sum()
    }

    /// Rows of the embedding.
    pub fn vocab(&self) -> Result<usize> {
        self.tensor_rows("token_embd.weight")
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

    /// A number among the metadata; the default where the key is absent.
    fn float(&self, key: &str, default: Option<f32>) -> Result<f32> {
        match (self.content.metadata.get(key), default) {
            (None, Some(default)) => Ok(default),
            (Some(Value::F64(number)), _) => Ok(*number as f32),
            _ => self.value(key)?.to_f32().with_context(|| format!("the model's `{key}`")),
        }
    }

    fn has(&self, key: &str) -> bool {
        self.content.metadata.contains_key(key)
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

#[cfg(test)]
pub(crate) mod tests {
    use candle_core::Tensor;
    use candle_core::quantized::gguf_file;

    use super::*;
    use crate::matmul::Precision;
    use crate::model::Model;

    /// A file with a model of one layer; `more` metadata, and a vector `extra`.
    pub(crate) fn small(name: &str, more: &[(&str, Value)], extra: Option<&str>) -> Result<Gguf> {
        let zeros = |dims: &[usize]| -> Result<QTensor> {
            let tensor = Tensor::zeros(dims, candle_core::DType::F32, &Device::Cpu)?;
            Ok(QTensor::quantize(&tensor, candle_core::quantized::GgmlDType::F32)?)
        };
        let mut tensors = Vec::new();
        let mut layer = |part: &str, dims: &[usize]| -> Result<()> {
            tensors.push((format!("{part}.weight"), zeros(dims)?));
            Ok(())
        };
        layer("token_embd", &[5, 8])?;
        layer("output_norm", &[8])?;
        for (part, dims) in [
            ("attn_q", &[8, 8][..]),
            ("attn_k", &[8, 8]),
            ("attn_v", &[8, 8]),
            ("attn_output", &[8, 8]),
            ("attn_norm", &[8]),
            ("ffn_norm", &[8]),
            ("ffn_gate", &[12, 8]),
            ("ffn_up", &[12, 8]),
            ("ffn_down", &[8, 12]),
        ] {
            layer(&format!("blk.0.{part}"), dims)?;
        }
        if let Some(extra) = extra {
            tensors.push((extra.to_owned(), zeros(&[8])?));
        }
        let counts = [
            ("attention.head_count", 2),
            ("embedding_length", 8),
            ("block_count", 1),
            ("feed_forward_length", 12),
            ("context_length", 64),
        ];
        let mut metadata: Vec<(String, Value)> =
            counts.map(|(key, count)| (format!("llama.{key}"), Value::U32(count))).to_vec();
        metadata.push(("general.architecture".to_owned(), Value::String("llama".to_owned())));
        metadata.push(("llama.attention.layer_norm_rms_epsilon".to_owned(), Value::F32(1e-5)));
        metadata.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        let metadata: Vec<(&str, &Value)> =
            metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors: Vec<(&str, &QTensor)> =
            tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let file = format!("inflight-llm-{}-{name}.gguf", std::process::id());
        let path = std::env::temp_dir().join(file);
        gguf_file::write(&mut File::create(&path)?, &metadata, &tensors)?;
        let gguf = Gguf::open(&path);
        // The open file outlives its name.
        std::fs::remove_file(&path)?;
        gguf
    }

    fn refusal(name: &str, more: &[(&str, Value)], extra: Option<&str>) -> String {
        let mut gguf = small(name, more, extra).unwrap();
        let error = Model::load(&mut gguf, Precision::F32).err().expect("the model is refused");
        format!("{error:#}")
    }

    #[test]
    fn what_a_file_says_is_known_or_refused() {
        let mut gguf = small("plain", &[], None).unwrap();
        let model = Model::load(&mut gguf, Precision::F32).unwrap();
        assert_eq!((model.shape.rope_theta, model.shape.kv_heads), (10_000.0, 2));
        assert_eq!(gguf.tensor_bytes(), 4 * (5 * 8 + 8 + 4 * 64 + 16 + 3 * 96));
        let theta = [("llama.rope.freq_base", Value::F64(5e5))];
        let gguf = small("theta", &theta, None).unwrap();
        assert_eq!(gguf.shape().unwrap().rope_theta, 5e5);

        for tensor in ["blk.0.attn_q.bias", "blk.0.ffn_down.bias", "output.bias"] {
            assert!(refusal(tensor, &[], Some(tensor)).contains(tensor));
        }
        for (key, value) in [
            ("llama.rope.freq_base", Value::U32(500_000)),
            ("llama.rope.scale_linear", Value::F32(4.0)),
            ("llama.rope.dimension_count", Value::F32(4.0)),
            ("llama.rope.scaling.type", Value::String("yarn".to_owned())),
        ] {
            let said = refusal(key, &[(key, value)], None);
            assert!(said.contains("positions") || said.contains("yarn") || said.contains(key));
        }
    }
}
