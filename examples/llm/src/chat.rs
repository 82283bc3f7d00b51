//! A model's chat template: messages to the text that the model was trained on.

use anyhow::{Context, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::{Deserialize, Serialize};

use crate::gguf::Gguf;

/// For models without a template of their own.
const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// What somebody said.
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

/// A chat template.
pub struct Template {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl Template {
    /// The template of a model; ChatML where it has none.
    pub fn new(gguf: &Gguf) -> Result<Self> {
        let mut environment = Environment::new();
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        // As Hugging Face's templates are written for.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.context("the syntax of templates")?);
        environment.add_function("raise_exception", |said: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, said))
        });
        let source = gguf.text("tokenizer.chat_template").unwrap_or(CHATML).to_owned();
        environment
            .add_template_owned("chat", source)
            .context("the model's chat template cannot be read")?;
        let word = |key: &str| -> Option<String> {
            let id = gguf.number(&format!("tokenizer.ggml.{key}")).ok()?;
            let words = gguf.array("tokenizer.ggml.tokens").ok()?;
            words.get(id)?.to_string().ok().cloned()
        };
        Ok(Self {
            environment,
            bos: word("bos_token_id").unwrap_or_default(),
            eos: word("eos_token_id").unwrap_or_default(),
        })
    }

    /// The text of a conversation, up to where the assistant's answer begins.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        let template = self.environment.get_template("chat").context("there is a template")?;
        let context = minijinja::context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        };
        template.render(context).context("the model's chat template refuses the messages")
    }
}
