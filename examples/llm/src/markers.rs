//! Special tokens and users' texts: a special token's name is text in what a user writes, and a token
//! in what the chat template writes.
//!
//! A user's text is quoted before the template puts it between its own markers: each name is replaced
//! by a character that stands for it. The template can trim, split and compare the quoted text, and no
//! text can pass for a marker.

use std::collections::HashMap;

use aho_corasick::{AhoCorasick, MatchKind};
use anyhow::{Context, Result, anyhow};
use tokenizers::{AddedToken, Tokenizer};

/// Begins what stands for a name in a quoted text; the name's number follows, as a character.
const NAME: char = '\u{fdd0}';
/// Begins a marker of the template.
const MARKER: char = '\u{fdd1}';
/// Separates a part of a name from what the template puts next to it.
const BORDER: char = '\u{fdd2}';
/// Number 0 of a name: from here on, characters are for private use.
const FIRST: u32 = 0xf_0000;

/// The special tokens of a tokenizer.
pub struct Markers {
    names: Vec<String>,
    finder: AhoCorasick,
    /// Takes names for text, and names after [`MARKER`] for tokens of its own.
    tokenizer: Tokenizer,
    /// Those tokens, and the tokens that they are.
    tokens: HashMap<u32, u32>,
}

impl Markers {
    /// The special tokens of this tokenizer.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let mut special: Vec<(u32, AddedToken)> = tokenizer
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special && !token.content.is_empty())
            .collect();
        special.sort_unstable_by_key(|&(id, _)| id);
        let mut tokenizer = tokenizer.clone();
        tokenizer.set_encode_special_tokens(true);
        let marker = |token: &AddedToken| AddedToken {
            content: format!("{MARKER}{}", token.content),
            special: false,
            normalized: false,
            ..token.clone()
        };
        let markers: Vec<_> = special.iter().map(|(_, token)| marker(token)).collect();
        tokenizer.add_tokens(markers.clone()).map_err(|error| anyhow!(error))?;
        let tokens = markers
            .iter()
            .zip(&special)
            .map(|(marker, &(id, _))| Some((tokenizer.token_to_id(&marker.content)?, id)));
        let tokens = tokens.collect::<Option<_>>().context("special tokens have two names each")?;
        let names: Vec<String> = special.into_iter().map(|(_, token)| token.content).collect();
        // As tokenizers looks for them.
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&names)?;
        Ok(Self { names, finder, tokenizer, tokens })
    }

    /// A user's text for a template: names of special tokens in it are text from then on, also those
    /// that it makes with what the template puts next to it.
    pub fn quote(&self, text: &str) -> String {
        let goes_on = |rest: &str| text.starts_with(rest) || rest.starts_with(text);
        let begins = |part: &str| text.ends_with(part) || part.ends_with(text);
        let before = self.any_split(text, |_, rest| goes_on(rest)).then_some(BORDER);
        let after = self.any_split(text, |part, _| begins(part)).then_some(BORDER);
        let quoted = self.quote_names(text);
        before.into_iter().chain(quoted.chars()).chain(after).collect()
    }

    /// The same for a value that the template may compare: whole names in it are text. Three of
    /// Unicode's noncharacters become U+FFFD.
    pub fn quote_names(&self, text: &str) -> String {
        let text = text.replace([NAME, MARKER, BORDER], "\u{fffd}");
        let mut quoted = String::with_capacity(text.len());
        self.finder.replace_all_with(&text, &mut quoted, |found, _, quoted| {
            let number = char::from_u32(FIRST + found.pattern().as_u32());
            quoted.extend([NAME, number.unwrap_or(char::REPLACEMENT_CHARACTER)]);
            true
        });
        quoted
    }

    /// Whether a text that has something in it, and the two parts of any name, are like this.
    fn any_split(&self, text: &str, is: impl Fn(&str, &str) -> bool) -> bool {
        let splits = |name: &String| {
            let mut places = name.char_indices().skip(1);
            places.any(|(at, _)| is(&name[..at], &name[at..]))
        };
        !text.is_empty() && self.names.iter().any(splits)
    }

    /// The tokens of a rendered template, in which users' texts are quoted.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut marked = String::with_capacity(text.len());
        self.finder.replace_all_with(text, &mut marked, |_, name, marked| {
            marked.push(MARKER);
            marked.push_str(name);
            true
        });
        let mut parts = marked.split(NAME);
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let mut rest = part.chars();
            let number = rest.next().and_then(|number| u32::from(number).checked_sub(FIRST));
            match number.and_then(|number| self.names.get(number as usize)) {
                Some(name) => text.extend([name, rest.as_str()]),
                // The template has cut what stood for it.
                None => text.push_str(part),
            }
        }
        text.retain(|char| char != BORDER);
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|error| anyhow!(error))?;
        let ids = encoding.get_ids().iter();
        Ok(ids.map(|id| *self.tokens.get(id).unwrap_or(id)).collect())
    }
}
