//! Times and tables for people.

use jiff::Timestamp;
use proto::node::{AddressCounts, HeldBack, PodStatus};

/// The characters of a container id that people look at.
const SHORT_ID: usize = 12;

/// A moment and how far it is from now, both in milliseconds since 1970:
/// `2026-11-21T14:02:11Z (3 min ago)`.
pub(super) fn moment(unix_ms: i64, now_unix_ms: i64) -> String {
    format!("{} ({})", clock(unix_ms), distance(unix_ms, now_unix_ms))
}

/// How far a moment is from now: `3 min ago`, `in 12 s`, `just now`.
pub(super) fn distance(unix_ms: i64, now_unix_ms: i64) -> String {
    match unix_ms.saturating_sub(now_unix_ms) {
        -999..=0 => "just now".to_owned(),
        ahead @ 1.. => format!("in {}", span(ahead)),
        behind => format!("{} ago", span(behind.saturating_neg())),
    }
}

/// A length of time in milliseconds, as exact as it helps: `0.4 s`, `12 s`, `3 min 5 s`, `2 h 13 min`,
/// `5 d 3 h`. A negative one counts as none.
pub(super) fn span(ms: i64) -> String {
    let seconds = ms.max(0) / 1000;
    let two = |large: i64, name: &str, small: i64, small_name: &str| match small {
        0 => format!("{large} {name}"),
        _ => format!("{large} {name} {small} {small_name}"),
    };
    match seconds {
        0 => format!("0.{} s", ms.max(0) / 100),
        1..60 => format!("{seconds} s"),
        60..3600 => two(seconds / 60, "min", seconds % 60, "s"),
        3600..86_400 => two(seconds / 3600, "h", seconds % 3600 / 60, "min"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}

/// In UTC, to the second.
fn clock(unix_ms: i64) -> String {
    match Timestamp::from_second(unix_ms.div_euclid(1000)) {
        Ok(time) => time.to_string(),
        Err(_) => format!("{unix_ms} ms since 1970"),
    }
}

/// `1 pod`, `2 pods`.
pub(super) fn count(number: impl Into<u64>, singular: &str, plural: &str) -> String {
    match number.into() {
        1 => format!("1 {singular}"),
        number => format!("{number} {plural}"),
    }
}

/// How many addresses; those of an IPv6 prefix are not counted.
pub(super) fn addresses(number: u32) -> String {
    if number == u32::MAX { "2^48".to_owned() } else { number.to_string() }
}

/// How many addresses are in which state.
pub(super) fn states(counts: &AddressCounts) -> String {
    let AddressCounts { assigned, cooling, quarantined, free, setting_up, .. } = counts;
    let free = addresses(*free);
    let mut text = format!("{assigned} assigned, {free} free, {cooling} cooling, {quarantined} quarantined");
    if *setting_up > 0 {
        text.push_str(&format!(", {} being set up", addresses(*setting_up)));
    }
    text
}

/// What people call a pod; for a sandbox without a name, the beginning of its id.
pub(super) fn pod(pod: Option<&PodStatus>) -> String {
    let Some(pod) = pod else { return "a pod without a name".to_owned() };
    if pod.name.is_empty() {
        let short: String = pod.container_id.chars().take(SHORT_ID).collect();
        return format!("sandbox {short}");
    }
    format!("{}/{}", pod.namespace, pod.name)
}

/// What the planner would do, and why it does not.
pub(super) fn held_back(held: &HeldBack, now_unix_ms: i64) -> String {
    let HeldBack { step, until_unix_ms, because } = held;
    match until_unix_ms {
        Some(until) => format!("waiting until {} to {step}, because {because}", moment(*until, now_unix_ms)),
        None => format!("cannot {step}: {because}"),
    }
}

/// Rows with their columns aligned to the left and two spaces between, each with `indent` spaces
/// before and a newline at the end.
pub(super) fn table(indent: usize, rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = " ".repeat(indent);
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_as_exact_as_it_helps() {
        for (ms, text) in [
            (-5, "0.0 s"),
            (420, "0.4 s"),
            (12_999, "12 s"),
            (60_000, "1 min"),
            (185_000, "3 min 5 s"),
            (7_980_000, "2 h 13 min"),
            (86_400_000, "1 d"),
            (443_000_000, "5 d 3 h"),
        ] {
            assert_eq!(span(ms), text, "{ms}");
        }
    }

    #[test]
    fn a_moment_says_when_and_how_far() {
        let now = 1_795_269_731_500;

        assert_eq!(moment(now - 180_000, now), "2026-11-21T13:59:11Z (3 min ago)");
        assert_eq!(distance(now + 12_000, now), "in 12 s");
        assert_eq!(distance(now - 400, now), "just now");
        assert_eq!(distance(now + 400, now), "in 0.4 s");
        assert_eq!(distance(i64::MIN, i64::MAX), "106751991167 d 7 h ago");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a", "bc"], ["long", "d"]].map(|row| row.map(str::to_owned).to_vec());

        assert_eq!(table(1, &rows), " a     bc\n long  d\n");
    }
}
