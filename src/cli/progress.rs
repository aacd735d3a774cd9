//! How far long work is: one line that is written over on a terminal, a line now and then elsewhere. On standard error, so that
//! what a command says stays what it says.

use std::io::{IsTerminal, Write};

/// Colours are for terminals, and not for those whose owner set `NO_COLOR` (no-color.org) or whose terminal is a dumb one.
pub fn has_colours(is_terminal: bool) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    is_terminal && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// A text in a colour of the terminal's own (`32` is green, `33` yellow, `31` red), or as it is.
pub fn coloured(text: &str, colour: &str, has_colours: bool) -> String {
    if has_colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

/// A line about what is going on, without an end that could be measured.
pub struct Status {
    is_terminal: bool,
    said: bool,
}

impl Status {
    pub fn new() -> Status {
        Status { is_terminal: std::io::stderr().is_terminal(), said: false }
    }

    /// For a process whose standard error has lines of its own: nothing but on a terminal.
    pub fn on_terminal() -> Option<Status> {
        Some(Status::new()).filter(|status| status.is_terminal)
    }

    pub fn say(&mut self, text: &str) {
        self.said = true;
        put(&if self.is_terminal { format!("\r\x1b[K{text}") } else { format!("{text}\n") });
    }
}

impl Drop for Status {
    fn drop(&mut self) {
        if self.is_terminal && self.said {
            put("\r\x1b[K");
        }
    }
}

/// A number of bytes as people read it, in powers of a thousand.
pub fn bytes(count: u64) -> String {
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.2} GB", count as f64 / 1e9),
    }
}

/// Writes to standard error at once.
pub fn put(text: &str) {
    let mut out = std::io::stderr().lock();
    // Whoever cannot be told does not need to be.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_said_in_powers_of_a_thousand() {
        for (count, wanted) in
            [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (27_500_000, "27.5 MB"), (4_660_000_000, "4.66 GB")]
        {
            assert_eq!(bytes(count), wanted);
        }
    }

    #[test]
    fn colours_are_only_where_they_are_wanted() {
        assert_eq!(coloured("ok", "32", false), "ok");
        assert_eq!(coloured("ok", "32", true), "\x1b[32mok\x1b[0m");
        assert!(!has_colours(false));
    }
}
