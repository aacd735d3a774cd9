//! How far a load is: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use crate::cli::progress::{bytes, coloured, has_colours, put};

/// Least time between two pictures on a terminal, and between two lines elsewhere.
const PICTURE: Duration = Duration::from_millis(100);
const LINE: Duration = Duration::from_secs(10);

/// Columns of the bar.
const BAR_LEN: u64 = 24;

/// Progress towards a number of bytes.
pub struct Bar {
    label: String,
    total: u64,
    /// Bytes that were there at the beginning: they say nothing about the speed.
    before: u64,
    began: Instant,
    shown: Option<Instant>,
    is_terminal: bool,
}

impl Bar {
    pub fn new(label: &str, total: u64, before: u64, now: Instant) -> Bar {
        let is_terminal = std::io::stderr().is_terminal();
        Bar { label: label.to_owned(), total, before, began: now, shown: None, is_terminal }
    }

    pub fn at(&mut self, done: u64, now: Instant) {
        let interval = if self.is_terminal { PICTURE } else { LINE };
        if self.shown.is_some_and(|shown| now.duration_since(shown) < interval) {
            return;
        }
        self.shown = Some(now);
        let text = self.text(done, now, if self.is_terminal { BAR_LEN } else { 0 });
        put(&if self.is_terminal { format!("\r\x1b[K{text}") } else { format!("{text}\n") });
    }

    /// The last line, which stays.
    pub fn end(&mut self, text: &str) {
        let start = if self.is_terminal { "\r\x1b[K" } else { "" };
        put(&format!("{start}{} {text}\n", self.label));
    }

    fn text(&self, done: u64, now: Instant, bar_len: u64) -> String {
        let share = if self.total == 0 { 1.0 } else { done as f64 / self.total as f64 };
        let filled = ((share * bar_len as f64) as u64).min(bar_len) as usize;
        let bar = match bar_len {
            0 => String::new(),
            _ => {
                let full = coloured(&"█".repeat(filled), "36", has_colours(self.is_terminal));
                format!(" {full}{}", "░".repeat(bar_len as usize - filled))
            }
        };
        let seconds = now.duration_since(self.began).as_secs_f64();
        let speed = (done - self.before.min(done)) as f64 / seconds.max(1e-3);
        let left = match speed > 0.0 && seconds > 0.5 {
            true => format!(", {:.0} s left", (self.total.saturating_sub(done)) as f64 / speed),
            false => String::new(),
        };
        format!("{}{bar} {:3.0} % of {}, {}/s{left}", self.label, share * 100.0, bytes(self.total), bytes(speed as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_says_how_far_how_fast_and_how_long_still() {
        let began = Instant::now();
        let bar =
            Bar { label: "a".into(), total: 4_000_000, before: 1_000_000, began, shown: None, is_terminal: false };
        let at = |done, ms| bar.text(done, began + Duration::from_millis(ms), 4);
        assert_eq!(at(1_000_000, 0), "a █░░░  25 % of 4.0 MB, 0 B/s");
        assert_eq!(at(2_000_000, 1_000), "a ██░░  50 % of 4.0 MB, 1.0 MB/s, 2 s left");
        assert_eq!(at(4_000_000, 3_000), "a ████ 100 % of 4.0 MB, 1.0 MB/s, 0 s left");
    }
}
