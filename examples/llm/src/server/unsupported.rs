//! Fields that this server does not act on: those that change no answer are taken, of the others the
//! values alone that ask for nothing.

use serde_json::Value;

use super::fields::{Fields, shown};

/// What a field without effect has to be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Text,
    Boolean,
    Object,
    OneOf(&'static [&'static str]),
}

const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// Fields without effect here. An answer names those of its request in a header.
const WITHOUT_EFFECT: [(&str, Kind); 13] = [
    ("user", Kind::Text),
    ("store", Kind::Boolean),
    ("metadata", Kind::Object),
    ("service_tier", Kind::Text),
    ("safety_identifier", Kind::Text),
    ("prompt_cache_key", Kind::Text),
    ("prompt_cache_retention", Kind::Text),
    ("session_id", Kind::Text),
    // There are no tools, no reasoning, and special tokens are never part of a text.
    ("parallel_tool_calls", Kind::Boolean),
    ("include_reasoning", Kind::Boolean),
    ("spaces_between_special_tokens", Kind::Boolean),
    ("reasoning_effort", Kind::OneOf(&EFFORTS)),
    ("verbosity", Kind::OneOf(&["low", "medium", "high"])),
];

/// Fields of OpenAI's and vLLM's that are not offered, and their values that ask for nothing, as JSON.
/// Null is one of every field.
const NOT_OFFERED: [(&str, &[&str]); 53] = [
    // Tools, media and the web.
    ("tools", &["[]"]),
    ("tool_choice", &[r#""none""#, r#""auto""#]),
    ("functions", &["[]"]),
    ("function_call", &[r#""none""#, r#""auto""#]),
    ("web_search_options", &[]),
    ("modalities", &[r#"["text"]"#]),
    ("audio", &[]),
    ("prediction", &[]),
    ("moderation", &[]),
    ("documents", &["[]"]),
    ("mm_processor_kwargs", &["{}"]),
    ("media_io_kwargs", &["{}"]),
    // What is generated, and from what.
    ("suffix", &[r#""""#]),
    ("echo", &["false"]),
    ("prompt_embeds", &["[]"]),
    ("truncate_prompt_tokens", &[]),
    ("truncation_side", &[]),
    ("use_beam_search", &["false"]),
    ("length_penalty", &["1"]),
    ("early_stopping", &["false"]),
    ("stop_token_ids", &["[]"]),
    ("allowed_token_ids", &["[]"]),
    ("bad_words", &["[]"]),
    ("logits_processors", &["[]"]),
    ("repetition_detection", &[]),
    ("thinking_token_budget", &["-1"]),
    ("watermarking", &["false"]),
    ("vllm_xargs", &["{}"]),
    ("structured_outputs", &[]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
    ("guided_decoding_backend", &[]),
    ("guided_whitespace_pattern", &[]),
    // The chat template.
    ("chat_template", &[]),
    ("add_generation_prompt", &["true"]),
    ("continue_final_message", &["false"]),
    // How an answer is written.
    ("detokenize", &["true"]),
    ("skip_special_tokens", &["true"]),
    ("include_stop_str_in_output", &["false"]),
    ("prompt_logprobs", &[]),
    ("logprob_token_ids", &[]),
    ("return_token_ids", &["false"]),
    ("return_tokens_as_token_ids", &["false"]),
    ("return_token_offsets", &["false"]),
    ("return_prompt_text", &["false"]),
    ("return_mm_kwargs", &["true"]),
    ("routed_experts_prompt_start", &["0"]),
    ("stream_interval", &["1"]),
    // Caches.
    ("cache_salt", &[]),
    ("kv_transfer_params", &["{}"]),
    ("ec_transfer_params", &["{}"]),
];

/// Of messages: participants' names, tools, and what other models add to their answers, which clients
/// send back.
pub const OF_MESSAGES: [(&str, &[&str]); 9] = [
    ("name", &[]),
    ("tool_calls", &["[]"]),
    ("tool_call_id", &[]),
    ("function_call", &[]),
    ("refusal", &[]),
    ("annotations", &["[]"]),
    ("audio", &[]),
    ("reasoning", &[]),
    ("reasoning_content", &[]),
];

/// Takes the fields of a request that are not acted on, and names those that are without effect.
pub fn take(fields: &mut Fields) -> Vec<String> {
    let mut ignored = Vec::new();
    for (name, kind) in WITHOUT_EFFECT {
        let taken = match kind {
            Kind::Text => fields.read(name, "a string", |value| value.is_string().then_some(())),
            Kind::Boolean => fields.boolean(name).map(|_| ()),
            Kind::Object => fields.read(name, "an object", |value| value.is_object().then_some(())),
            Kind::OneOf(words) => one_of(fields, name, words).map(|_| ()),
        };
        ignored.extend(taken.map(|()| name.to_owned()));
    }
    refuse(fields, &NOT_OFFERED);
    ignored
}

/// Takes `reasoning_effort`, for a template that reads it.
pub fn reasoning_effort(fields: &mut Fields) -> Option<String> {
    one_of(fields, "reasoning_effort", &EFFORTS)
}

/// Takes one of a few words.
fn one_of(fields: &mut Fields, name: &str, words: &[&str]) -> Option<String> {
    let wanted = format!("one of {}", words.join(", "));
    let known =
        |value: &Value| value.as_str().filter(|word| words.contains(word)).map(str::to_owned);
    fields.read(name, &wanted, known)
}

/// Refuses what these fields ask for.
pub fn refuse(fields: &mut Fields, table: &[(&str, &[&str])]) {
    for &(name, neutral) in table {
        let Some(value) = fields.take(name) else { continue };
        if !neutral.iter().any(|text| same(text, &value)) {
            let only = match neutral {
                [] => "leave it out".to_owned(),
                values => format!("only {}", values.join(" or ")),
            };
            fields.fault(name, format!("{} is not offered here, {only}", shown(&value)));
        }
    }
}

/// Whether a value is the one of this JSON text; 1 is 1.0.
fn same(text: &str, value: &Value) -> bool {
    let Ok(wanted) = serde_json::from_str::<Value>(text) else { return false };
    wanted == *value || (wanted.is_number() && wanted.as_f64() == value.as_f64())
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::super::fields::Faults;
    use super::*;

    fn param(name: &str, value: Value) -> Result<Vec<String>, String> {
        let mut faults = Faults::default();
        let mut fields = Fields::new(Map::from_iter([(name.to_owned(), value)]), &mut faults);
        let ignored = take(&mut fields);
        fields.finish();
        let refused =
            |error: super::super::error::ApiError| error.body_json()["error"]["param"].clone();
        faults.into_result().map_err(|error| refused(error).as_str().unwrap_or("").to_owned())?;
        Ok(ignored)
    }

    #[test]
    fn fields_are_taken_with_values_that_ask_for_nothing_and_refused_by_name_with_others() {
        for (name, neutral) in NOT_OFFERED {
            let values = neutral.iter().map(|text| serde_json::from_str(text).expect("it is JSON"));
            for value in values.chain([Value::Null]) {
                assert_eq!(param(name, value), Ok(Vec::new()), "{name}");
            }
            for value in [json!({ "a": 1 }), json!(["a"]), json!("x"), json!(7)] {
                assert_eq!(param(name, value), Err(name.to_owned()));
            }
        }
        assert_eq!(param("length_penalty", json!(1.0)), Ok(Vec::new()));
        assert_eq!(param("web_search_options", json!({})), Err("web_search_options".to_owned()));
        assert_eq!(param("max_tokns", json!([])), Err("max_tokns".to_owned()));
    }

    #[test]
    fn fields_without_effect_are_told_and_have_a_type_all_the_same() {
        for (name, kind) in WITHOUT_EFFECT {
            let value = match kind {
                Kind::Text => json!("x"),
                Kind::Boolean => json!(false),
                Kind::Object => json!({}),
                Kind::OneOf(words) => json!(words[0]),
            };
            assert_eq!(param(name, value), Ok(vec![name.to_owned()]));
            assert_eq!(param(name, json!(7)), Err(name.to_owned()));
            assert_eq!(param(name, Value::Null), Ok(Vec::new()));
        }
    }
}
