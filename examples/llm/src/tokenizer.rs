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

/// What llama.cpp splits by where a file names nothing else, each within what the last one left.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

/// Names of Llama 3's way to split text. It implies, as in llama.cpp, that a word of the vocabulary
/// is not merged from its parts, and that texts begin with the token for that.
const LLAMA_3_NAMES: [&str; 3] = ["llama-bpe", "llama3", "llama-v3"];

/// Ends of documents and turns, where a file has them as control tokens.
const ENDS: [&str; 4] = ["<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "</s>"];

/// Where a file has its tokens' kinds.
const KINDS: &str = "tokenizer.ggml.token_type";
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
        let words = gguf.array("tokenizer.ggml.tokens").unwrap_or_default();
        ends.extend(control_ends(words, gguf.array(KINDS).unwrap_or_default()));
        // A tokenizer of another file may have more tokens than the model.
        let vocab = gguf.vocab()?;
        ends.retain(|&end| (end as usize) < vocab);
        ends.sort_unstable();
        ends.dedup();
        let add_bos = gguf.flag("tokenizer.ggml.add_bos_token");
        let add_bos = add_bos.unwrap_or_else(|| LLAMA_3_NAMES.contains(&pre(gguf)));
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
    let pre = pre(gguf);
    let bpe = BPE::builder()
        .vocab_and_merges(vocab.collect::<tokenizers::models::bpe::Vocab>(), merges)
        .ignore_merges(LLAMA_3_NAMES.contains(&pre))
        .build()
        .map_err(|error| anyhow!(error))?;
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    let plain = |regex| ByteLevel::new(false, true, regex);
    let split = |regexes: &[&str]| -> Result<PreTokenizerWrapper> {
        let split = |regex: &&str| {
            let pattern = SplitPattern::Regex((*regex).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
            split.map(PreTokenizerWrapper::from).map_err(|error| anyhow!(error))
        };
        let splits = regexes.iter().map(split);
        let all = splits.chain([Ok(plain(false).into())]).collect::<Result<_>>()?;
        Ok(Sequence::new(all).into())
    };
    tokenizer.with_pre_tokenizer(Some(match pre {
        "smollm" => Sequence::new(vec![Digits::new(true).into(), plain(true).into()]).into(),
        llama if LLAMA_3_NAMES.contains(&llama) => split(&[LLAMA_3])?,
        "qwen2" => split(&[QWEN_2])?,
        "gpt-2" => plain(true).into(),
        "default" => split(&DEFAULT)?,
        other => bail!("the model splits text as `{other}`: name its tokenizer.json"),
    }));
    if pre == "qwen2" {
        tokenizer.with_normalizer(Some(NFC)).map_err(|error| anyhow!(error))?;
    }
    tokenizer.with_decoder(Some(plain(true)));
    let kinds = gguf.array(KINDS).unwrap_or_default();
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

/// How the text is split before it is merged.
fn pre(gguf: &Gguf) -> &str {
    gguf.text("tokenizer.ggml.pre").unwrap_or("default")
}

/// The control tokens that end a text by their names.
fn control_ends<'a>(words: &'a [Value], kinds: &'a [Value]) -> impl Iterator<Item = u32> + 'a {
    let all = words.iter().zip(kinds).enumerate();
    all.filter(|(_, (word, kind))| {
        let named = word.to_string().is_ok_and(|word| ENDS.contains(&word.as_str()));
        named && kind_of(kind) == Some(CONTROL)
    })
    .map(|(id, _)| id as u32)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::tests::small;

    /// A file whose words are bytes, "ab", "abc" (which no merge makes), and ends; the model has
    /// five tokens.
    fn made(name: &str, pre: Option<&str>, words: &[&str], kinds: &[u32]) -> Result<Tokenizer> {
        let strings = |all: &[&str]| {
            Value::Array(all.iter().map(|&word| Value::String(word.to_owned())).collect())
        };
        let kinds = kinds.iter().map(|&kind| Value::I32(kind as i32)).collect();
        let mut metadata = vec![
            ("tokenizer.ggml.model", Value::String("gpt2".to_owned())),
            ("tokenizer.ggml.tokens", strings(words)),
            ("tokenizer.ggml.merges", strings(&["a b"])),
            (KINDS, Value::Array(kinds)),
            ("tokenizer.ggml.bos_token_id", Value::U32(0)),
        ];
        metadata.extend(pre.map(|pre| ("tokenizer.ggml.pre", Value::String(pre.to_owned()))));
        Tokenizer::new(&small(name, &metadata, None)?, None)
    }

    #[test]
    fn control_tokens_end_texts_by_their_names_where_the_model_has_them() {
        let words = ["a", "<|endoftext|>", "</s>", "<|eom_id|>", "b", "ab", "<|end_of_text|>"];
        let kinds = [1, CONTROL, 1, CONTROL, 1, 1, CONTROL];
        let tokenizer = made("ends", Some("gpt-2"), &words, &kinds).unwrap();
        // Not 2, which is a word, nor 6, which the model has no row for.
        assert_eq!(tokenizer.ends(), [1, 3]);
    }

    #[test]
    fn llama_3_begins_texts_and_takes_whole_words_by_all_its_names() {
        let words = ["<s>", "a", "b", "c", "abc", "ab"];
        let kinds = [CONTROL, 1, 1, 1, 1, 1];
        for name in LLAMA_3_NAMES {
            let tokenizer = made(name, Some(name), &words, &kinds).unwrap();
            assert_eq!(tokenizer.encode("abc").unwrap(), [0, 4], "{name}");
        }
        let tokenizer = made("gpt", Some("gpt-2"), &words, &kinds).unwrap();
        assert_eq!(tokenizer.encode("abc").unwrap(), [5, 3]);
    }

    #[test]
    fn without_a_name_digits_go_by_threes() {
        let words = ["<s>", "1", "2", "12", "a", "b", "ab", "."];
        let kinds = [CONTROL, 1, 1, 1, 1, 1, 1, 1];
        let tokenizer = made("default", None, &words, &kinds).unwrap();
        let regexes = tokenizer.inner.get_pre_tokenizer().expect("there is one");
        let mut text = tokenizers::PreTokenizedString::from("a.. 12345");
        tokenizers::PreTokenizer::pre_tokenize(regexes, &mut text).unwrap();
        let (kind, from) = (tokenizers::OffsetType::Byte, tokenizers::OffsetReferential::Original);
        let pieces = text.get_splits(from, kind);
        let pieces: Vec<&str> = pieces.iter().map(|(piece, ..)| *piece).collect();
        assert_eq!(pieces, ["a", "..", "\u{120}", "123", "45"]);
    }
}
