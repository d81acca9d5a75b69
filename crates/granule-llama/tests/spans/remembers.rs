//! A subscriber that remembers: every span that is entered, with its fields, and where it was.

use std::fmt::{Debug, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// What was entered while `work` ran on this thread, in order: a line a span, two spaces in for each that it was in.
pub(crate) fn entered_in(most: LevelFilter, work: impl FnOnce()) -> Vec<String> {
    let lines = Arc::default();
    let remembers =
        Remembers { most, made: AtomicU64::new(1), spans: Mutex::default(), lines: Arc::clone(&lines) };
    tracing::subscriber::with_default(remembers, work);
    let lines = std::mem::take(&mut *lines.lock().unwrap());
    lines.1
}

struct Remembers {
    most: LevelFilter,
    made: AtomicU64,
    spans: Mutex<Vec<(u64, String)>>,
    /// How many spans are open, and the lines.
    lines: Arc<Mutex<(usize, Vec<String>)>>,
}

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }
}

impl Subscriber for Remembers {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "granule" && *metadata.level() <= self.most
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.most)
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut fields = Fields(span.metadata().name().to_owned());
        span.record(&mut fields);
        let id = self.made.fetch_add(1, Ordering::Relaxed);
        self.spans.lock().unwrap().push((id, fields.0));
        Id::from_u64(id)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, id: &Id) {
        let (depth, lines) = &mut *self.lines.lock().unwrap();
        let spans = self.spans.lock().unwrap();
        let (_, line) = spans.iter().find(|(other, _)| *other == id.into_u64()).unwrap();
        lines.push(format!("{}{line}", "  ".repeat(*depth)));
        *depth += 1;
    }

    fn exit(&self, _: &Id) {
        self.lines.lock().unwrap().0 -= 1;
    }
}
