//! An event as one line of JSON.

use std::fmt;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

pub(super) struct JsonLine;

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let file = metadata.file().map(short).unwrap_or_default();
        let level = metadata.level().as_str().to_ascii_lowercase();
        let now = jiff::Timestamp::now();
        // The well-known keys come first and in this order, which a map would not keep.
        write!(
            out,
            "{{\"level\":\"{level}\",\"ts\":\"{now:.3}\",\"caller\":{},\"msg\":{}",
            Value::from(format!("{file}:{}", metadata.line().unwrap_or(0))),
            Value::from(fields.message),
        )?;
        for (name, value) in &fields.others {
            write!(out, ",{}:{value}", Value::from(name.as_str()))?;
        }
        writeln!(out, "}}")
    }
}

/// `ipamd/src/pool/plan.rs` as `pool/plan.rs`.
fn short(file: &str) -> &str {
    file.rsplit_once("src/").map_or(file, |(_, inner)| inner)
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn set(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            // An event's field must not pose as one of the line's own keys.
            (name @ ("level" | "ts" | "caller" | "msg"), value) => {
                self.others.insert(format!("{name}_"), value);
            }
            (name, value) => {
                self.others.insert(name.to_owned(), value);
            }
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, Value::from(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, Value::from(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, Value::from(value));
    }
}
