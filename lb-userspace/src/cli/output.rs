//! Words to the terminal.

use std::io::{self, IsTerminal, Write};

/// Writes to stdout, at once. The error of a closed pipe is the caller's end, not a panic.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes a value as indented JSON.
pub fn print_json(value: &impl serde::Serialize) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    print(&text)
}

/// Writes an error to stderr. Those of the configuration are whole reports with a head of their own.
/// Where stderr is closed too, nobody listens.
pub fn complain(message: &str) {
    let message = message.trim_end();
    let head = if message.starts_with("error") {
        ""
    } else {
        "lb: "
    };
    let _ = writeln!(io::stderr(), "{head}{message}");
}

/// An error with its causes, each once: many errors name theirs in their own words already.
pub fn chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Colours, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Palette {
    on: bool,
}

impl Palette {
    /// Colours only for a terminal, and only if nobody minds (<https://no-color.org>).
    pub fn of_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self {
            on: io::stdout().is_terminal() && !refused,
        }
    }

    /// No colours.
    #[cfg(test)]
    pub const PLAIN: Self = Self { on: false };

    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub fn soft(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub fn shout(self, text: &str) -> String {
        self.paint("1;97;41", text)
    }

    pub fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.on {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// `text` without characters that would drive the terminal: parts of it come from backends.
pub fn tame(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// A span of time in its two largest units: `5s`, `1m40s`, `3h2m`, `12d1h`.
pub fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    let (minute, hour, day) = (60, 3600, 86_400);
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{}m{}s", whole / minute, whole % minute),
        3600..86_400 => format!("{}h{}m", whole / hour, whole % hour / minute),
        _ => format!("{}d{}h", whole / day, whole % day / hour),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units() {
        for (seconds, text) in [
            (-3.0, "0s"),
            (0.9, "0s"),
            (59.0, "59s"),
            (100.0, "1m40s"),
            (10_920.0, "3h2m"),
            (1_040_400.0, "12d1h"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn a_cause_is_named_once() {
        let cause = || anyhow::anyhow!("in use (os error 98)");
        let error = cause().context("node.http: in use (os error 98); choose another");
        assert_eq!(
            chain(&error.context("starting")),
            "starting: node.http: in use (os error 98); choose another"
        );
        assert_eq!(
            chain(&cause().context("binding")),
            "binding: in use (os error 98)"
        );
    }

    #[test]
    fn a_backend_cannot_drive_the_terminal() {
        assert_eq!(tame("\x1b[2Jgone\n"), "\u{fffd}[2Jgone\u{fffd}");
    }
}
