//! A model's chat template: messages to the text that the model was trained on.

use std::collections::HashSet;
use std::fs::read_to_string;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::gguf::Gguf;
use crate::tokenizer::Tokenizer;

/// For models without a template of their own.
const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A message of one role.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Message {
    /// "system", "user" or "assistant".
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// What a user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: "user".to_owned(), content: content.into() }
    }
}

/// Variables of a template by their names.
pub type Variables = Map<String, serde_json::Value>;

/// Variables that [`Template::render`] gives itself.
pub const GIVEN: [&str; 4] = ["messages", "add_generation_prompt", "bos_token", "eos_token"];

/// A chat template.
pub struct Template {
    environment: Environment<'static>,
    /// Names that it reads and does not set.
    reads: HashSet<String>,
    bos: String,
    eos: String,
}

impl Template {
    /// The template of this file, or else of the model; ChatML where it has none.
    pub fn new(gguf: &Gguf, file: Option<&Path>) -> Result<Self> {
        let own = gguf.text("tokenizer.chat_template").unwrap_or(CHATML);
        let source = match file {
            Some(path) => read_to_string(path).with_context(|| format!("{}", path.display()))?,
            None => own.to_owned(),
        };
        let word = |key: &str| -> Option<String> {
            let id = gguf.number(&format!("tokenizer.ggml.{key}")).ok()?;
            let words = gguf.array("tokenizer.ggml.tokens").ok()?;
            words.get(id)?.to_string().ok().cloned()
        };
        let [bos, eos] = ["bos_token_id", "eos_token_id"].map(|key| word(key).unwrap_or_default());
        Self::with(source, bos, eos)
    }

    fn with(source: String, bos: String, eos: String) -> Result<Self> {
        let mut environment = Environment::new();
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        // As Hugging Face's templates are written for.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.context("the syntax of templates")?);
        environment.add_function("raise_exception", |said: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, said))
        });
        environment.add_function("strftime_now", |format: String| strftime(&format, unix_time()));
        environment.add_template_owned("chat", source).context("the chat template is not valid")?;
        let reads = environment.get_template("chat")?.undeclared_variables(false);
        Ok(Self { environment, reads, bos, eos })
    }

    /// Whether the template reads a variable of this name.
    pub fn reads(&self, variable: &str) -> bool {
        self.reads.contains(variable)
    }

    /// The tokens of a conversation. Names of special tokens in messages are text.
    pub fn tokens(&self, tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<u32>> {
        let quote = |message: &Message| Message {
            role: message.role.clone(),
            content: tokenizer.markers().quote(&message.content),
        };
        let messages: Vec<_> = messages.iter().map(quote).collect();
        tokenizer.encode_quoted(&self.render(&messages, &Variables::new())?, true)
    }

    /// The text of a conversation, up to where the assistant's answer begins.
    pub fn render(&self, messages: &[Message], variables: &Variables) -> Result<String> {
        let template = self.environment.get_template("chat").context("there is a template")?;
        let context = minijinja::context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            ..Value::from(Serde(variables))
        };
        template.render(context).context("the chat template refuses the messages")
    }
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// A time in UTC by the fields that templates use; others stay as they are written.
fn strftime(format: &str, seconds: u64) -> String {
    const DAYS: [&str; 7] =
        ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 1 March of the year 0, in eras of 400 years; a year ends with its February.
    let shifted = day + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let date = of_year - (153 * from_march + 2) / 5 + 1;
    let month = (from_march + 2) % 12;
    let year = 400 * era + year_of_era + u64::from(month < 2);
    let (month_name, day_name) = (MONTHS[month as usize], DAYS[(day % 7) as usize]);
    let (mut text, mut fields) = (String::new(), format.chars());
    while let Some(next) = fields.next() {
        let field = if next == '%' { fields.next() } else { None };
        match field {
            Some('Y') => text += &year.to_string(),
            Some('y') => text += &format!("{:02}", year % 100),
            Some('m') => text += &format!("{:02}", month + 1),
            Some('B') => text += month_name,
            Some('b') => text += &month_name[..3],
            Some('d') => text += &format!("{date:02}"),
            Some('A') => text += day_name,
            Some('a') => text += &day_name[..3],
            Some('H') => text += &format!("{:02}", second / 3600),
            Some('M') => text += &format!("{:02}", second / 60 % 60),
            Some('S') => text += &format!("{:02}", second % 60),
            Some('%') => text.push('%'),
            other => text.extend([Some(next), other].into_iter().flatten()),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_may_leave_loops_and_ask_for_the_date() {
        let source = "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}\
                      {{ m.content }}{% break %}{% endfor %} {{ strftime_now('%Y') | length }}";
        let template = Template::with(source.to_owned(), String::new(), String::new()).unwrap();
        let said = |role: &str, content: &str| Message {
            role: role.to_owned(),
            content: content.to_owned(),
        };
        let messages = [said("system", "x"), said("user", "a"), said("user", "b")];
        assert_eq!(template.render(&messages, &Variables::new()).unwrap(), "a 4");
    }

    #[test]
    fn variables_go_to_the_template_and_do_not_replace_what_it_is_given() {
        let source = "{% set mine = 1 %}{{ messages[0].content }}{{ bos_token }}{{ mine }}\
                      {% if thinking %} {{ thinking.depth }}{% endif %}";
        let template = Template::with(source.to_owned(), "<s>".to_owned(), String::new()).unwrap();
        assert!(template.reads("thinking") && !template.reads("mine") && !template.reads("depth"));
        let messages = [Message::user("hi")];
        let json =
            serde_json::json!({ "thinking": { "depth": 3 }, "messages": [], "bos_token": "x" });
        let variables = json.as_object().expect("an object");
        assert_eq!(template.render(&messages, variables).unwrap(), "hi<s>1 3");
        assert_eq!(template.render(&messages, &Variables::new()).unwrap(), "hi<s>1");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let all = "%A %a %d %B %b %m %Y %y %H:%M:%S %% %q";
        for (seconds, wanted) in [
            (0, "Thursday Thu 01 January Jan 01 1970 70 00:00:00 % %q"),
            (951_782_399, "Monday Mon 28 February Feb 02 2000 00 23:59:59 % %q"),
            (951_782_400, "Tuesday Tue 29 February Feb 02 2000 00 00:00:00 % %q"),
            (1_735_689_599, "Tuesday Tue 31 December Dec 12 2024 24 23:59:59 % %q"),
            (4_107_542_400, "Monday Mon 01 March Mar 03 2100 00 00:00:00 % %q"),
        ] {
            assert_eq!(strftime(all, seconds), wanted);
        }
    }
}
