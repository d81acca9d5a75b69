//! Text from tokens as they come, never half a character.

use super::{TokenId, Tokenizer};
use crate::error::Result;

/// Turns tokens into text one by one. A token may end in the middle of a character: what is incomplete waits for the
/// next token; what can never become a character is given out as U+FFFD. All pieces together, with what
/// [`TextStream::finish`] gives, are [`Tokenizer::decode`] of all tokens.
#[derive(Clone, Debug)]
pub struct TextStream {
    /// Whether no text came yet.
    start: bool,
    /// An incomplete character, at most three bytes; also the room where text and new bytes meet.
    pending: Vec<u8>,
    text: String,
}

impl TextStream {
    /// A stream that begins a text: the space that a `llama` vocabulary puts in front is dropped.
    #[must_use]
    pub fn new() -> Self {
        Self { start: true, pending: Vec::new(), text: String::new() }
    }

    /// A stream that goes on where other text ends: a space in front is kept.
    #[must_use]
    pub fn continuing() -> Self {
        Self { start: false, ..Self::new() }
    }

    /// Take the next token and return the text that is complete with it; often nothing.
    ///
    /// # Errors
    /// [`crate::Error::TokenOutOfRange`]; the stream stays as it was.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: TokenId) -> Result<&str> {
        self.text.clear();
        self.pending.extend_from_slice(tokenizer.piece(token, &mut self.start)?);
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            self.text.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            // Only what stands at the very end may still become a character.
            let incomplete = done + invalid.len() == self.pending.len()
                && std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
            if invalid.is_empty() || incomplete {
                continue;
            }
            self.text.push(char::REPLACEMENT_CHARACTER);
            done += invalid.len();
        }
        self.pending.drain(..done);
        Ok(&self.text)
    }

    /// The end of the text: U+FFFD where a character stayed incomplete, else nothing. The stream is new again,
    /// at the beginning of a text.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if !self.pending.is_empty() {
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        self.pending.clear();
        self.start = true;
        &self.text
    }
}

impl Default for TextStream {
    fn default() -> Self {
        Self::new()
    }
}
