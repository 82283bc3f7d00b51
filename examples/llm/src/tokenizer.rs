//! Text to tokens and back: the tokenizer and the chat template that a GGUF file carries.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use candle_core::quantized::gguf_file::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper,
    PreTokenizerWrapper, SplitDelimiterBehavior,
};

use crate::gguf::Gguf;

/// How Llama 3 splits text; Qwen 2 takes digits one by one.
const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A token's kinds in `tokenizer.ggml.token_type`.
const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;

type DecodeStream<'a> = tokenizers::tokenizer::DecodeStream<
    'a,
    ModelWrapper,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// Text to tokens and back.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
    /// Tokens that end a text.
    ends: Vec<u32>,
    /// Bytes of the longest token, or more.
    longest: usize,
    /// The bytes that the characters of tokens stand for, in byte-level BPE.
    bytes: HashMap<char, u8>,
}

impl Tokenizer {
    /// The tokenizer of a model, or of a `tokenizer.json` where the model's kind is not known.
    pub fn new(gguf: &Gguf, file: Option<&Path>) -> Result<Self> {
        let inner = match file {
            Some(path) => tokenizers::Tokenizer::from_file(path)
                .map_err(|error| anyhow!("{}: {error}", path.display()))?,
            None => from_gguf(gguf)?,
        };
        let id = |key: &str| gguf.number(&format!("tokenizer.ggml.{key}")).ok().map(|id| id as u32);
        let mut ends: Vec<u32> =
            ["eos_token_id", "eot_token_id", "eom_token_id"].into_iter().filter_map(id).collect();
        // Files that name the end of a text alone end their turns with one of these.
        let turns = ["<|im_end|>", "<|eot_id|>", "<|end|>"];
        ends.extend(turns.into_iter().filter_map(|turn| inner.token_to_id(turn)));
        ends.sort_unstable();
        ends.dedup();
        let add_bos = gguf.flag("tokenizer.ggml.add_bos_token").unwrap_or(false);
        let bos = id("bos_token_id").filter(|_| add_bos);
        let longest = inner.get_vocab(true).keys().map(String::len).max().unwrap_or(0);
        let bytes = match inner.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => byte_level(),
            _ => HashMap::new(),
        };
        Ok(Self { inner, bos, ends, longest, bytes })
    }

    /// Tokens that end a text.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// No token has more bytes.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The tokens of a text; names of special tokens in it stand for them.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| anyhow!(error))?;
        let ids = encoding.get_ids();
        let bos = self.bos.filter(|bos| ids.first() != Some(bos));
        Ok(bos.into_iter().chain(ids.iter().copied()).collect())
    }

    /// The text of tokens, special ones left out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner.decode(tokens, true).map_err(|error| anyhow!(error))
    }

    /// How a token is written, special ones included.
    pub fn piece(&self, token: u32) -> String {
        self.inner.decode(&[token], false).unwrap_or_default()
    }

    /// The bytes of a token: a character may take several tokens.
    pub fn bytes(&self, token: u32) -> Vec<u8> {
        let word = self.inner.id_to_token(token).unwrap_or_default();
        let bytes = word.chars().map(|char| self.bytes.get(&char).copied());
        bytes.collect::<Option<_>>().unwrap_or_else(|| self.piece(token).into_bytes())
    }

    /// The text of tokens as they come.
    pub fn stream(&self) -> TextStream<'_> {
        let decoder = self.inner.decode_stream(true);
        TextStream { tokenizer: self, decoder, tokens: Vec::new(), shown: 0 }
    }
}

/// The text of tokens as they come: what is certain of it. A character may take several tokens.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    decoder: DecodeStream<'a>,
    tokens: Vec<u32>,
    /// Bytes of the text that were given out.
    shown: usize,
}

impl TextStream<'_> {
    /// What a token adds to the text; nothing while a character is not whole.
    pub fn push(&mut self, token: u32) -> Result<String> {
        self.tokens.push(token);
        let added = self.decoder.step(token).map_err(|error| anyhow!(error))?.unwrap_or_default();
        self.shown += added.len();
        Ok(added)
    }

    /// What is left when no token follows: a character that was begun.
    pub fn finish(&self) -> Result<String> {
        let text = self.tokenizer.decode(&self.tokens)?;
        Ok(text.get(self.shown..).unwrap_or_default().to_owned())
    }
}

/// The byte-level BPE of a file.
fn from_gguf(gguf: &Gguf) -> Result<tokenizers::Tokenizer> {
    let model = gguf.text("tokenizer.ggml.model").unwrap_or("none");
    if model != "gpt2" {
        bail!("the model's tokenizer is `{model}`, not byte-level BPE: name its tokenizer.json");
    }
    let words = strings(gguf, "tokenizer.ggml.tokens")?;
    let merges = strings(gguf, "tokenizer.ggml.merges")?;
    let merges = merges.iter().map(|merge| match merge.split_once(' ') {
        Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
        None => bail!("the model's merge `{merge}` is not of two"),
    });
    let merges = merges.collect::<Result<Vec<_>>>()?;
    let vocab = words.iter().enumerate().map(|(id, word)| (word.clone(), id as u32));
    let pre = gguf.text("tokenizer.ggml.pre").unwrap_or("default");
    let bpe = BPE::builder()
        .vocab_and_merges(vocab.collect::<tokenizers::models::bpe::Vocab>(), merges)
        .ignore_merges(pre == "llama-bpe")
        .build()
        .map_err(|error| anyhow!(error))?;
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    let plain = |regex| ByteLevel::new(false, true, regex);
    let split = |regex: &str| -> Result<PreTokenizerWrapper> {
        let pattern = SplitPattern::Regex(regex.to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
        let split = split.map_err(|error| anyhow!(error))?;
        Ok(Sequence::new(vec![split.into(), plain(false).into()]).into())
    };
    tokenizer.with_pre_tokenizer(Some(match pre {
        "smollm" => Sequence::new(vec![Digits::new(true).into(), plain(true).into()]).into(),
        "llama-bpe" | "llama3" => split(LLAMA_3)?,
        "qwen2" => split(QWEN_2)?,
        "default" | "gpt-2" => plain(true).into(),
        other => bail!("the model splits text as `{other}`: name its tokenizer.json"),
    }));
    if pre == "qwen2" {
        tokenizer.with_normalizer(Some(NFC)).map_err(|error| anyhow!(error))?;
    }
    tokenizer.with_decoder(Some(plain(true)));
    let kinds = gguf.array("tokenizer.ggml.token_type").unwrap_or_default();
    for (word, kind) in words.iter().zip(kinds) {
        let token = |special| AddedToken::from(word.clone(), special);
        let added = match kind_of(kind) {
            Some(CONTROL) => tokenizer.add_special_tokens([token(true)]),
            Some(USER_DEFINED) => tokenizer.add_tokens([token(false)]),
            _ => continue,
        };
        added.map_err(|error| anyhow!(error))?;
    }
    Ok(tokenizer)
}

/// Byte-level BPE writes a byte as the character of its number where that can be seen, else as one of
/// those that follow 255.
fn byte_level() -> HashMap<char, u8> {
    let seen = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let (seen, unseen): (Vec<u8>, Vec<u8>) = (0..=255).partition(seen);
    let unseen = ('\u{100}'..='\u{143}').zip(unseen);
    seen.into_iter().map(|byte| (char::from(byte), byte)).chain(unseen).collect()
}

fn strings(gguf: &Gguf, key: &str) -> Result<Vec<String>> {
    let strings = gguf.array(key)?.iter().map(|value| value.to_string().cloned());
    strings.collect::<candle_core::Result<_>>().with_context(|| format!("`{key}`"))
}

fn kind_of(value: &Value) -> Option<u32> {
    match value {
        Value::I32(kind) => u32::try_from(*kind).ok(),
        Value::U32(kind) => Some(*kind),
        _ => None,
    }
}
