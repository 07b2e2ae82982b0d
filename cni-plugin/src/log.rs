//! The plugin's log: one JSON line a call, appended with one write, and never a reason to fail.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::CniError;
use crate::json::Json;
use crate::request::{LogTarget, Request};

/// What one call has to say, gathered while it runs.
#[derive(Debug)]
pub(crate) struct Journal {
    plugin: &'static str,
    fields: Vec<(String, Json)>,
    warnings: Vec<String>,
    started: Instant,
}

impl Journal {
    /// An empty journal of a call of `plugin` that began at `started`.
    pub(crate) fn new(plugin: &'static str, started: Instant) -> Self {
        Self { plugin, fields: Vec::new(), warnings: Vec::new(), started }
    }

    /// When the call began.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Notes a fact.
    pub(crate) fn fact(&mut self, name: &str, value: impl ToString) {
        self.fields.push((name.to_owned(), Json::string(value.to_string())));
    }

    /// Notes what went wrong without ending the call.
    pub(crate) fn warn(&mut self, warning: impl ToString) {
        self.warnings.push(warning.to_string());
    }

    /// Writes the call's line to `target`, unless `threshold` leaves its level out.
    pub(crate) fn write(
        self,
        target: &LogTarget,
        threshold: &str,
        request: &Request,
        error: Option<&CniError>,
    ) {
        let (level, message) = match (error, self.warnings.is_empty()) {
            (Some(_), _) => ("error", "call failed"),
            (None, false) => ("warn", "call served with warnings"),
            (None, true) => ("info", "call served"),
        };
        if rank(level) < rank(threshold) {
            return;
        }
        let caller = format!("{}/{}", self.plugin, request.verb.name().to_lowercase());
        let mut fields = vec![
            ("level".to_owned(), Json::string(level)),
            ("ts".to_owned(), Json::string(timestamp(SystemTime::now()))),
            ("caller".to_owned(), Json::string(caller)),
            ("msg".to_owned(), Json::string(message)),
            ("verb".to_owned(), Json::string(request.verb.name())),
        ];
        if !request.container_id.is_empty() {
            fields.push(("container".to_owned(), Json::string(request.container_id.as_str())));
            fields.push(("ifname".to_owned(), Json::string(request.interface.as_str())));
        }
        fields.extend(self.fields);
        let micros = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        fields
            .push(("durationMs".to_owned(), Json::Number(format!("{}.{:03}", micros / 1000, micros % 1000))));
        if !self.warnings.is_empty() {
            let warnings = self.warnings.into_iter().map(Json::String).collect();
            fields.push(("warnings".to_owned(), Json::Array(warnings)));
        }
        if let Some(error) = error {
            fields.push(("code".to_owned(), Json::number(error.code.0)));
            fields.push(("error".to_owned(), Json::string(error.to_string())));
        }
        let mut line = Json::Object(fields).compact();
        line.push('\n');
        append(target, line.as_bytes());
    }
}

/// Appends a line with a single write, so that those of processes at the same time do not mix.
fn append(target: &LogTarget, line: &[u8]) {
    // A log that cannot be written is no reason to leave a pod without its network, and nobody
    // is left to be told of it.
    let _ = match target {
        LogTarget::Stderr => std::io::stderr().write_all(line),
        LogTarget::File(path) => OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .and_then(|mut file| file.write_all(line)),
    };
}

/// Levels by weight; an unknown one is `debug`.
fn rank(level: &str) -> u8 {
    match level {
        "info" => 1,
        "warn" => 2,
        "error" => 3,
        "fatal" => 4,
        _ => 0,
    }
}

/// A time as `2026-01-31T07:29:33.705Z`.
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (seconds, millis) = (since.as_secs(), since.subsec_millis());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Counted in eras of 400 years that begin on the first of March, so that the leap day comes
    // last in its year.
    let from_march = days + 719_468;
    let (era, day) = (from_march / 146_097, from_march % 146_097);
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{:02}.{millis:03}Z", second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_in_utc_with_milliseconds() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_769_844_573_705, "2026-01-31T07:29:33.705Z"),
            (1_798_761_599_999, "2026-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_millis(millis)), text);
        }
    }
}
