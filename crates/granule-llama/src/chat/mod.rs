//! Chat: a conversation through the model's own template, into tokens.
//!
//! The template of a GGUF file is Jinja, as Hugging Face's `apply_chat_template` runs it. Special tokens such as
//! `<|im_end|>` are recognized where the template writes them and never where a message contains their text: the
//! template runs a second time on messages in disguise, and what comes out in disguise is a message's.

mod disguise;
mod template;

use crate::error::{Error, Result, excerpt};
use crate::gguf::Metadata;
use crate::tokenizer::{TokenId, Tokenizer};
use disguise::Disguise;
use template::Template;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user` or `assistant`, or another word that the model's template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl ChatMessage {
    /// A message.
    #[must_use]
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A conversation as the model wants to see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatPrompt {
    /// The template's output.
    pub text: String,
    /// Its tokens, with a start token in front where the file asks for one and the template did not write it.
    pub tokens: Vec<TokenId>,
}

/// A model's chat template, ready to run.
///
/// A template is a program: it runs for a bounded number of steps and writes a bounded length of text. It comes with
/// the model's weights and is trusted as far as they are: it can still spend memory on strings of its own.
#[derive(Debug)]
pub struct ChatTemplate {
    template: Template,
}

impl ChatTemplate {
    /// Read the template of a file (`tokenizer.chat_template`).
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`] where there is none, [`Error::ChatTemplate`] where it cannot be read.
    pub fn from_metadata(metadata: &Metadata, tokenizer: &Tokenizer) -> Result<Self> {
        let source = metadata.find_str("tokenizer.chat_template")?.ok_or(Error::NoChatTemplate)?;
        Self::new(source, tokenizer)
    }

    /// Read a template.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] where it cannot be read, with its line.
    pub fn new(source: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let text = |token: Option<TokenId>| token.and_then(|t| tokenizer.token_text(t)).unwrap_or_default();
        let template = Template::new(source, text(tokenizer.bos()), text(tokenizer.eos()))?;
        Ok(Self { template })
    }

    /// The template's own text.
    #[must_use]
    pub fn source(&self) -> &str {
        self.template.source()
    }

    /// Run the template. `add_generation_prompt` ends the text where the assistant's answer begins.
    ///
    /// # Errors
    /// [`Error::ChatRefused`] with the template's words where it refuses the messages, [`Error::ChatTemplate`] where
    /// it fails, [`Error::InvalidRole`] for a role that is no plain word.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        check_roles(messages)?;
        self.template.render(messages, add_generation_prompt)
    }

    /// Run the template and turn its output into tokens: special tokens are those that the template wrote.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`] and [`Tokenizer::encode`].
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<ChatPrompt> {
        let plain = self.render(messages, add_generation_prompt)?;
        let disguise = Disguise::new(tokenizer.steering_texts().collect(), self.template.inputs(), messages)?;
        let disguised = match self.template.render(&disguise.whole(messages), add_generation_prompt) {
            Ok(disguised) if disguise.remove(&disguised) == plain => disguised,
            // The template looks into the messages and so writes something else for the disguise. Then only those
            // characters are disguised with which the text of a special token begins in a message.
            _ => self.template.render(&disguise.specials_only(messages), add_generation_prompt)?,
        };
        let tokens = tokenizer.encode_disguised(&disguised, |text| disguise.remove(text))?;
        Ok(ChatPrompt { text: disguise.remove(&disguised), tokens })
    }
}

/// A role is written next to the template's own text, where it must not look like a special token.
fn check_roles(messages: &[ChatMessage]) -> Result<()> {
    let plain =
        |role: &str| !role.is_empty() && role.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'));
    match messages.iter().find(|m| !plain(&m.role)) {
        Some(bad) => Err(Error::InvalidRole { role: excerpt(&bad.role) }),
        None => Ok(()),
    }
}
