//! A chat: with a person at a terminal, or with each line of stdin as a message.

use std::io::{BufRead, IsTerminal};

use anyhow::{Context as _, Result};
use granule_llama::{
    CancelToken, ChatMessage, ChatTemplate, Context, Error, Finish, GenerateOptions, TokenId,
};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::args::RunArgs;
use crate::prompt_cache::PromptCache;
use crate::run::{answer, finish_line};
use crate::{interrupt, one_line};

/// One message and its answer.
pub(crate) fn one(
    args: &RunArgs,
    message: &str,
    context: &mut Context,
    options: &GenerateOptions,
    cache: Option<&mut PromptCache<'_>>,
) -> Result<Option<Finish>> {
    Chat::new(args, context, options, cache)?.say(message).map(Some)
}

/// Message after message, until there are no more; returns how the last answer ended where that ended the chat.
pub(crate) fn many(
    args: &RunArgs,
    context: &mut Context,
    options: &GenerateOptions,
    cache: Option<&mut PromptCache<'_>>,
    cancel: &CancelToken,
) -> Result<Option<Finish>> {
    let mut chat = Chat::new(args, context, options, cache)?;
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() && !args.json {
        return chat.with_a_person(cancel).map(|()| None);
    }
    let mut lines = std::io::stdin().lock().lines();
    while let Some(line) = interrupt::while_waiting(cancel, || lines.next()) {
        let line = line.context("standard input")?;
        if line.trim().is_empty() {
            continue;
        }
        if chat.say(&line)? == Finish::Cancelled {
            return Ok(Some(Finish::Cancelled));
        }
    }
    Ok(None)
}

/// A conversation.
struct Chat<'a, 'p> {
    args: &'a RunArgs,
    context: &'a mut Context,
    options: &'a GenerateOptions,
    cache: Option<&'a mut PromptCache<'p>>,
    template: ChatTemplate,
    messages: Vec<ChatMessage>,
}

impl<'a, 'p> Chat<'a, 'p> {
    /// An empty conversation; an error where the model has no chat template.
    fn new(
        args: &'a RunArgs,
        context: &'a mut Context,
        options: &'a GenerateOptions,
        cache: Option<&'a mut PromptCache<'p>>,
    ) -> Result<Self> {
        let template = context.model().chat_template()?;
        Ok(Chat { args, context, options, cache, template, messages: Vec::new() })
    }

    /// Adds a message, writes the answer to it and keeps both. Where there is no answer, nothing has been said.
    fn say(&mut self, message: &str) -> Result<Finish> {
        let before = self.messages.clone();
        self.messages.push(ChatMessage::new("user", message));
        match self.answer() {
            Ok(finish) => Ok(finish),
            Err(error) => {
                self.messages = before;
                Err(error)
            }
        }
    }

    fn answer(&mut self) -> Result<Finish> {
        let tokens = self.prompt()?;
        // What the conversation has in common with what is in the cache is not computed again.
        let kept = self.context.rewind_to(&tokens)?;
        let (options, cache) = (self.options.clone(), self.cache.as_deref_mut());
        let answer = answer(self.args, self.context, &tokens, kept, options, cache)?;
        finish_line(self.args, self.context, &answer)?;
        self.messages.push(ChatMessage::new("assistant", answer.text));
        Ok(answer.finish)
    }

    /// The conversation's tokens; the oldest exchanges are forgotten where they leave too little room for an answer.
    fn prompt(&mut self) -> Result<Vec<TokenId>> {
        let n_ctx = self.context.n_ctx();
        let room = self.options.n_predict.unwrap_or(usize::MAX).min(n_ctx / 4);
        let mut forgotten = false;
        loop {
            let tokenizer = self.context.model().tokenizer();
            let tokens = self.template.encode(tokenizer, &self.messages, true)?.tokens;
            if tokens.len() + room <= n_ctx || self.messages.len() < 3 {
                if forgotten {
                    eprintln!("(the oldest messages are forgotten: the context of {n_ctx} tokens is full)");
                }
                return Ok(tokens);
            }
            self.messages.drain(..2);
            forgotten = true;
        }
    }

    fn with_a_person(&mut self, cancel: &CancelToken) -> Result<()> {
        eprintln!("Ctrl-C stops an answer, /clear starts a new conversation, /exit or Ctrl-D ends.");
        let mut editor = DefaultEditor::new()?;
        loop {
            let line = match interrupt::while_waiting(cancel, || editor.readline("> ")) {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => {
                    eprintln!("/exit or Ctrl-D ends.");
                    continue;
                }
                Err(ReadlineError::Eof) => return Ok(()),
                Err(other) => return Err(other.into()),
            };
            match line.trim() {
                "" => continue,
                "/exit" => return Ok(()),
                "/clear" => {
                    // What the next conversation begins with as this one did stays in the cache.
                    self.messages.clear();
                    continue;
                }
                _ => {}
            }
            editor.add_history_entry(line.as_str())?;
            match self.say(&line) {
                Ok(_) => {}
                Err(error) if matches!(error.downcast_ref(), Some(Error::Cancelled)) => eprintln!(),
                // A message that does not fit is told; the person may say another one.
                Err(error) if error.downcast_ref::<Error>().is_some() => {
                    eprintln!("error: {}", one_line(&error))
                }
                Err(other) => return Err(other),
            }
            cancel.reset();
        }
    }
}
