//! What a person sees: a line that lives while work goes on, and lines that stay.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Standard output. On a terminal the current activity is shown in place; elsewhere each line is
/// written once.
#[derive(Debug)]
pub(crate) struct Screen {
    began: Instant,
    is_live: bool,
    /// Whether the last line is one that the next overwrites.
    is_fleeting: Mutex<bool>,
}

impl Screen {
    pub(crate) fn new() -> Screen {
        let is_live = std::io::stdout().is_terminal();
        Screen { began: Instant::now(), is_live, is_fleeting: Mutex::new(false) }
    }

    /// Whether standard output is a terminal.
    pub(crate) fn is_live(&self) -> bool {
        self.is_live
    }

    /// A line that stays, with the time since the start before it.
    pub(crate) fn step(&self, text: &str) {
        self.write(&format!("[{:5.1} s] {text}", self.began.elapsed().as_secs_f32()), false);
    }

    /// A line that stays, as it is.
    pub(crate) fn line(&self, text: &str) {
        self.write(text, false);
    }

    /// What is going on right now; only a terminal shows it.
    pub(crate) fn now(&self, text: &str) {
        if self.is_live {
            self.write(&format!("[{:5.1} s] {text}", self.began.elapsed().as_secs_f32()), true);
        }
    }

    fn write(&self, text: &str, is_fleeting: bool) {
        let mut last = self.is_fleeting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = std::io::stdout().lock();
        let (erase, end) = (if *last { "\r\x1b[K" } else { "" }, if is_fleeting { "" } else { "\n" });
        // A reader that has gone away is no reason to fail.
        let _ = write!(out, "{erase}{text}{end}");
        let _ = out.flush();
        *last = is_fleeting;
    }
}
