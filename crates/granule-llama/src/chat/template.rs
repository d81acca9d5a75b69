//! The Jinja side of a chat template: an environment like the one that Hugging Face's `apply_chat_template` makes.

use super::ChatMessage;
use crate::error::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, ErrorKind, context};
use std::io;

const NAME: &str = "chat_template";
/// Bytes that a template may have. The longest in use have half of that.
const MAX_SOURCE: usize = 1 << 16;
/// Steps that a template may take, and those for each message. Real ones take 25 to 100 for a message.
const STEPS: u64 = 200_000;
const STEPS_PER_MESSAGE: u64 = 500;
/// Stack for each byte of source or each step, which is as deep as expressions and values can nest: the engine walks
/// them by recursion, with up to 640 bytes a level. It is reserved, not used, unless a template is out for it.
const STACK_PER_LEVEL: usize = 1024;
/// Bytes that a template may write besides the messages, each of which it may repeat this often, too.
const MAX_OUTPUT: usize = 1 << 20;
const MAX_REPEATS: usize = 16;

#[derive(Debug)]
pub(super) struct Template {
    environment: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
}

impl Template {
    pub(super) fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        if source.len() > MAX_SOURCE {
            let reason = format!("is longer than {MAX_SOURCE} bytes");
            return Err(Error::ChatTemplate { reason });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| error(&e))?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        // Writes more than it reads, by the square of the depth.
        environment.remove_filter("pprint");
        let environment = on_stack(MAX_SOURCE, move || {
            environment.add_template_owned(NAME, source.to_owned()).map_err(|e| error(&e))?;
            Ok(environment)
        })?;
        Ok(Self { environment, source: source.to_owned(), bos: bos.to_owned(), eos: eos.to_owned() })
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// All texts that the template works on besides the messages.
    pub(super) fn inputs(&self) -> [&str; 3] {
        [&self.source, &self.bos, &self.eos]
    }

    pub(super) fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        let given: usize = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
        let limit = MAX_OUTPUT + given.saturating_mul(MAX_REPEATS);
        let steps = STEPS.saturating_add(STEPS_PER_MESSAGE.saturating_mul(messages.len() as u64));
        let depth = MAX_SOURCE.saturating_add(usize::try_from(steps).unwrap_or(usize::MAX));
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(steps));
        on_stack(depth, move || {
            let mut out = Limited { bytes: Vec::new(), limit };
            let list: Vec<Value> = messages
                .iter()
                .map(|m| context! { role => m.role.as_str(), content => m.content.as_str() })
                .collect();
            // `tools` and `documents` are there but none, as `apply_chat_template` has them.
            let values = context! {
                messages => list,
                add_generation_prompt,
                bos_token => self.bos.as_str(),
                eos_token => self.eos.as_str(),
                tools => (),
                documents => (),
            };
            let template = environment.get_template(NAME).map_err(|e| error(&e))?;
            template.render_captured_to(values, &mut out).map_err(|e| error(&e))?;
            String::from_utf8(out.bytes)
                .map_err(|_| Error::ChatTemplate { reason: "writes what is not UTF-8".to_owned() })
        })
    }
}

/// Run the template engine where nesting of this depth does not exhaust the stack.
fn on_stack<T: Send>(depth: usize, run: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let failed = |reason: String| Error::ChatTemplate { reason };
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("chat template".to_owned())
            .stack_size(depth.saturating_mul(STACK_PER_LEVEL))
            .spawn_scoped(scope, run)
            .map_err(|e| failed(format!("cannot start its thread: {e}")))?
            .join()
            .unwrap_or_else(|_| Err(failed("the template engine failed".to_owned())))
    })
}

/// An output with an end.
struct Limited {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            return Err(io::Error::other(format!("writes more than {} bytes", self.limit)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a template says when it refuses; told from the engine's own errors by this type.
#[derive(Debug)]
struct Refusal(String);

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

fn raise_exception(reason: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, "refused").with_source(Refusal(reason)))
}

/// The local time by a format of C's `strftime`.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now())
        .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e.to_string()))
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`: minijinja's own filter escapes for HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let fail = |e: serde_json::Error| {
        minijinja::Error::new(ErrorKind::BadSerialization, "cannot be written as JSON").with_source(e)
    };
    let mut out = Limited { bytes: Vec::new(), limit: MAX_OUTPUT };
    match indent {
        None => {
            let mut serializer = serde_json::Serializer::with_formatter(&mut out, OneLine);
            serde::Serialize::serialize(value, &mut serializer).map_err(fail)?;
        }
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
            serde::Serialize::serialize(value, &mut serializer).map_err(fail)?;
        }
    }
    Ok(Value::from(String::from_utf8_lossy(&out.bytes).into_owned()))
}

/// JSON on one line with the spaces that Python writes.
struct OneLine;

impl serde_json::ser::Formatter for OneLine {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// One line that says what failed and where: the template's own words where it refused.
fn error(error: &minijinja::Error) -> Error {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(refusal) = cause.downcast_ref::<Refusal>() {
            return Error::ChatRefused { reason: one_line(&refusal.0) };
        }
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    Error::ChatTemplate { reason: one_line(&reason) }
}

/// A text as one line of bearable length.
fn one_line(text: &str) -> String {
    const LIMIT: usize = 400;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
