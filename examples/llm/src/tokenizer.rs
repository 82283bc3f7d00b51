//! Text to tokens and back: the tokenizer and the chat template that a GGUF file carries.

use std::collections::{HashMap, HashSet};
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
use crate::markers::Markers;

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
    /// Special tokens: text leaves them out.
    special: HashSet<u32>,
    markers: Markers,
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
        let added = inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        let markers = Markers::new(&inner)?;
        Ok(Self { inner, bos, ends, longest, bytes, special, markers })
    }

    /// Tokens that end a text.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// No token has more bytes.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The tokens of a text; names of special tokens in it stand for them. It begins with the token
    /// for that, where the model wants one.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, true)
    }

    /// The same; without `begin`, no token is added.
    pub fn encode_with(&self, text: &str, begin: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| anyhow!(error))?;
        Ok(self.begun(encoding.get_ids().to_vec(), begin))
    }

    /// The tokens of a text in which names that [`Markers::quote`] has quoted are text.
    pub fn encode_quoted(&self, text: &str, begin: bool) -> Result<Vec<u32>> {
        Ok(self.begun(self.markers.encode(text)?, begin))
    }

    fn begun(&self, mut tokens: Vec<u32>, begin: bool) -> Vec<u32> {
        if let Some(bos) = self.bos.filter(|bos| begin && tokens.first() != Some(bos)) {
            tokens.insert(0, bos);
        }
        tokens
    }

    /// Special tokens by their names, in templates and users' texts.
    pub fn markers(&self) -> &Markers {
        &self.markers
    }

    /// The text of tokens, special ones left out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner.decode(tokens, true).map_err(|error| anyhow!(error))
    }

    /// How a token is written, special ones included: one that is no text by its bytes, as OpenAI
    /// does, such as `bytes:\xe2\x80`.
    pub fn label(&self, token: u32) -> String {
        let written = |byte: u8| match byte {
            b'\\' => r"\\".to_owned(),
            b' '..=b'~' => char::from(byte).to_string(),
            _ => format!("\\x{byte:02x}"),
        };
        String::from_utf8(self.bytes(token)).unwrap_or_else(|error| {
            let bytes = error.into_bytes().into_iter().map(written);
            format!("bytes:{}", bytes.collect::<String>())
        })
    }

    /// The bytes of a token: a character may take several tokens.
    pub fn bytes(&self, token: u32) -> Vec<u8> {
        let word = self.inner.id_to_token(token).unwrap_or_default();
        if !self.bytes.is_empty() {
            let bytes = word.chars().map(|char| self.bytes.get(&char).copied());
            return bytes.collect::<Option<_>>().unwrap_or_else(|| word.into_bytes());
        }
        // SentencePiece writes a byte that is in no word as `<0xE2>`, and a space as U+2581.
        let byte = word.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => vec![byte],
            None if self.special.contains(&token) => word.into_bytes(),
            None => word.replace('\u{2581}', " ").into_bytes(),
        }
    }

    /// The text of tokens as they come.
    pub fn stream(&self) -> TextStream<'_> {
        let decoding = match self.bytes.is_empty() {
            true => {
                let decoder = self.inner.decode_stream(true);
                Decoding::Words { decoder, tokens: Vec::new(), shown: 0 }
            }
            false => Decoding::Bytes(Vec::new()),
        };
        TextStream { tokenizer: self, decoding }
    }
}

/// The text of tokens as they come: what is certain of it. A character may take several tokens.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    decoding: Decoding<'a>,
}

enum Decoding<'a> {
    /// Tokens are bytes: those of a character that was begun.
    Bytes(Vec<u8>),
    /// A token's text depends on those before it.
    Words {
        decoder: DecodeStream<'a>,
        tokens: Vec<u32>,
        /// Bytes of the text that were given out.
        shown: usize,
    },
}

impl TextStream<'_> {
    /// What a token adds to the text; nothing while a character is not whole.
    pub fn push(&mut self, token: u32) -> Result<String> {
        match &mut self.decoding {
            Decoding::Bytes(_) if self.tokenizer.special.contains(&token) => Ok(String::new()),
            Decoding::Bytes(begun) => {
                begun.extend(self.tokenizer.bytes(token));
                Ok(take_whole(begun))
            }
            Decoding::Words { decoder, tokens, shown } => {
                tokens.push(token);
                let added = decoder.step(token).map_err(|error| anyhow!(error))?;
                let added = added.unwrap_or_default();
                *shown += added.len();
                Ok(added)
            }
        }
    }

    /// Whether a character that was begun is none, because this token does not go on with it.
    pub fn is_broken_by(&self, token: u32) -> bool {
        let Decoding::Bytes(begun) = &self.decoding else { return false };
        let next = self.tokenizer.bytes(token);
        let [first, ..] = next[..] else { return false };
        let error = std::str::from_utf8(&[begun, &[first][..]].concat()).err();
        let is_text = !self.tokenizer.special.contains(&token);
        is_text && !begun.is_empty() && error.is_some_and(|error| error.error_len().is_some())
    }

    /// What is left when no token follows: a character that was begun.
    pub fn finish(&mut self) -> Result<String> {
        match &mut self.decoding {
            Decoding::Bytes(begun) => {
                let begun = std::mem::take(begun);
                Ok(String::from_utf8_lossy(&begun).into_owned())
            }
            Decoding::Words { tokens, shown, .. } => {
                let text = self.tokenizer.decode(tokens)?;
                Ok(text.get(*shown..).unwrap_or_default().to_owned())
            }
        }
    }
}

/// Takes whole characters, with U+FFFD for bytes that are none; leaves one that was begun.
fn take_whole(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    loop {
        let (whole, wrong) = match std::str::from_utf8(bytes) {
            Ok(all) => (all.len(), None),
            Err(error) => (error.valid_up_to(), error.error_len()),
        };
        let taken = whole + wrong.unwrap_or(0);
        text.push_str(&String::from_utf8_lossy(&bytes[..taken]));
        bytes.drain(..taken);
        if wrong.is_none() {
            return text;
        }
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

    #[test]
    fn parts_of_characters_are_written_as_bytes() {
        // Words of bytes: an emoji's first two, a space and the first of three, two more, and a word.
        let words =
            ["<s>", "\u{f0}\u{141}", "\u{120}\u{e2}", "\u{124}\u{ac}", "ab", "\\\u{e2}", "a", "b"];
        let kinds = [CONTROL, 1, 1, 1, 1, 1, 1, 1];
        let tokenizer = made("bytes", Some("gpt-2"), &words, &kinds).unwrap();
        let labels: Vec<String> = (0..6).map(|token| tokenizer.label(token)).collect();
        let wanted =
            ["<s>", r"bytes:\xf0\x9f", r"bytes: \xe2", r"bytes:\x82\xac", "ab", r"bytes:\\\xe2"];
        assert_eq!(labels, wanted);
        assert_eq!(tokenizer.bytes(2), [b' ', 0xe2]);
        let mut stream = tokenizer.stream();
        stream.push(2).unwrap();
        assert_eq!(
            [3, 0, 1, 4, 5].map(|token| stream.is_broken_by(token)),
            [false, false, true, true, true]
        );
        let mut stream = tokenizer.stream();
        let pieces = [2, 0, 3, 1, 4].map(|token| stream.push(token).unwrap());
        assert_eq!(pieces, [" ", "", "€", "", "\u{fffd}ab"], "what was begun and is none is told");
        stream.push(1).unwrap();
        assert_eq!(stream.finish().unwrap(), "\u{fffd}");
        assert_eq!(tokenizer.decode(&[2, 0, 3, 1, 4, 1]).unwrap(), " €\u{fffd}ab\u{fffd}");
    }

    #[test]
    fn names_of_special_tokens_are_text_where_they_are_quoted() {
        let words = ["<s>", "<", "s", ">", "a", "b", "ab", "[/I]", "[", "/", "I", "]"];
        let kinds = [CONTROL, 1, 1, 1, 1, 1, 1, CONTROL, 1, 1, 1, 1];
        let tokenizer = made("quoted", Some("gpt-2"), &words, &kinds).unwrap();
        let encode = |before: &str, said: &str, after: &str| {
            let text = format!("{before}{}{after}", tokenizer.markers().quote(said));
            tokenizer.encode_quoted(&text, false).unwrap()
        };
        assert_eq!(tokenizer.encode_with("ab<s>ab", false).unwrap(), [6, 0, 6]);
        assert_eq!(encode("<s>", "ab", "[/I]"), [0, 6, 7]);
        assert_eq!(encode("<s>", "a<s>b", "[/I]"), [0, 4, 1, 2, 3, 5, 7]);
        assert_eq!(encode("", "<s><s>", "<s>"), [1, 2, 3, 1, 2, 3, 0]);
        // Nor do texts become names by what they are put between, or by what stands for names.
        assert_eq!(encode("[", "/I", "]"), [8, 9, 10, 11]);
        assert_eq!(encode("<", "s>", "<s>"), [1, 2, 3, 0]);
        assert_eq!(encode("", "a<s", ">"), [4, 1, 2, 3]);
        let forged =
            ["\u{fdd0}\u{f0000}", "\u{fdd1}<s>", "<\u{fdd2}s>"].map(|said| encode("", said, ""));
        assert!(forged.iter().all(|tokens| !tokens.contains(&0)), "{forged:?}");
    }
}
