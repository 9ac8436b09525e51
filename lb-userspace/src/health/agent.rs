//! What an agent beside a backend says of it, in the words of HAProxy's agent check
//! (<https://docs.haproxy.org/2.8/configuration.html#5.2-agent-check>).
//!
//! An agent's word is an axis of its own: it never overrides the operator or a failed probe, and
//! only the agent takes it back. What a line does not mention stays as it was, and an agent that
//! cannot be reached has said nothing.
//!
//! The probe (`probe::agent`) reads a line; [`Axis`] keeps what was said, and the verdict follows from
//! all of it.

use std::fmt;

/// Longest line that is taken.
pub const MAX_LINE: usize = 1024;

/// Largest weight, percent of the configured one.
const MAX_PERCENT: u32 = 1000;

/// Whether the backend is to get traffic, by its operator on the spot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stance {
    #[default]
    Ready,
    /// Established flows only.
    Drain,
    /// None at all.
    Maintenance,
}

/// Why the agent calls its backend down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Down,
    Failed,
    /// Stopped on purpose.
    Stopped,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Down => "down",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        })
    }
}

/// A backend that its agent calls down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Down {
    pub fault: Fault,
    /// The text after `#`, not made harmless yet; empty: none.
    pub reason: String,
}

/// One line of an agent. `None`: not mentioned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub stance: Option<Stance>,
    /// `Some(None)`: up.
    pub down: Option<Option<Down>>,
    /// Percent of the configured weight.
    pub weight: Option<u32>,
}

/// A line that is no agent's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    #[error("the agent's line is empty")]
    Empty,
    #[error("the agent's line is not text")]
    NotText,
    #[error("\"{}\" is no word of an agent", .0.escape_debug())]
    UnknownWord(String),
    #[error("\"{}\" is no weight from 0% to {MAX_PERCENT}%", .0.escape_debug())]
    Weight(String),
}

/// Reads what an agent has sent: its first line; words parted by white space and commas, after `#`
/// a text for people.
///
/// # Errors
/// Stricter than HAProxy, which skips what it does not know: one unknown word and nothing of the
/// line counts, so that no half of it takes effect.
pub fn parse(sent: &[u8]) -> Result<Report, ReportError> {
    let line = sent
        .split(|byte| matches!(byte, b'\r' | b'\n'))
        .next()
        .unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| ReportError::NotText)?;
    let (words, reason) = line.split_once('#').unwrap_or((line, ""));
    let mut report = Report::default();
    let mut words = words
        .split(|c: char| c == ',' || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .peekable();
    if words.peek().is_none() {
        return Err(ReportError::Empty);
    }
    let down = |fault| {
        let reason = reason.trim().to_owned();
        Some(Some(Down { fault, reason }))
    };
    for word in words {
        match word.to_ascii_lowercase().as_str() {
            "ready" => report.stance = Some(Stance::Ready),
            "drain" => report.stance = Some(Stance::Drain),
            "maint" => report.stance = Some(Stance::Maintenance),
            "up" => report.down = Some(None),
            "down" => report.down = down(Fault::Down),
            "fail" | "failed" => report.down = down(Fault::Failed),
            "stopped" => report.down = down(Fault::Stopped),
            // A limit of connections is for proxies; flows are not counted against one here.
            other if other.starts_with("maxconn:") => {}
            other if other.ends_with('%') => report.weight = Some(percent(other)?),
            _ => return Err(ReportError::UnknownWord(word.to_owned())),
        }
    }
    Ok(report)
}

fn percent(word: &str) -> Result<u32, ReportError> {
    let digits = word.strip_prefix("weight:").unwrap_or(word);
    let digits = digits.trim_end_matches('%');
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain
        .then(|| digits.parse().ok())
        .flatten()
        .filter(|percent| *percent <= MAX_PERCENT)
        .ok_or_else(|| ReportError::Weight(word.to_owned()))
}

/// All that an agent has said of its backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    pub stance: Stance,
    pub down: Option<Down>,
    /// Percent of the configured weight.
    pub weight: u32,
}

impl Default for Axis {
    fn default() -> Self {
        Self {
            stance: Stance::default(),
            down: None,
            weight: 100,
        }
    }
}

impl Axis {
    /// Takes over what a line mentions; true if that changes anything.
    pub fn apply(&mut self, report: &Report) -> bool {
        let before = self.clone();
        self.stance = report.stance.unwrap_or(self.stance);
        self.weight = report.weight.unwrap_or(self.weight);
        if let Some(down) = &report.down {
            self.down.clone_from(down);
        }
        *self != before
    }

    /// Whether the backend is not to get new flows.
    pub fn is_no(&self) -> bool {
        self.down.is_some() || self.stance != Stance::Ready || self.weight == 0
    }

    /// Percent of its slots that the backend is to get. A backend cannot have more than its own, so
    /// what is above 100 % counts as that.
    pub fn percent(&self) -> u8 {
        u8::try_from(self.weight).map_or(100, |percent| percent.min(100))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(stance: Option<Stance>, down: Option<Option<Down>>, weight: Option<u32>) -> Report {
        Report {
            stance,
            down,
            weight,
        }
    }

    fn down(fault: Fault, reason: &str) -> Option<Option<Down>> {
        let reason = reason.to_owned();
        Some(Some(Down { fault, reason }))
    }

    #[test]
    fn lines_are_read() {
        let drain = Some(Stance::Drain);
        for (line, expected) in [
            ("up\n", report(None, Some(None), None)),
            (
                "ready up 75%\n",
                report(Some(Stance::Ready), Some(None), Some(75)),
            ),
            ("drain", report(drain, None, None)),
            ("MAINT\r\n", report(Some(Stance::Maintenance), None, None)),
            ("0%", report(None, None, Some(0))),
            ("weight:150%,up\n", report(None, Some(None), Some(150))),
            ("up maxconn:30\n", report(None, Some(None), None)),
            (
                "down#disk full\n",
                report(None, down(Fault::Down, "disk full"), None),
            ),
            (
                "fail # no route\nup\n",
                report(None, down(Fault::Failed, "no route"), None),
            ),
            (
                "stopped,drain\t10%",
                report(drain, down(Fault::Stopped, ""), Some(10)),
            ),
        ] {
            assert_eq!(parse(line.as_bytes()), Ok(expected), "{line}");
        }
    }

    #[test]
    fn other_lines_say_nothing() {
        use ReportError::{Empty, NotText, UnknownWord, Weight};
        for (line, expected) in [
            (b"".as_slice(), Empty),
            (b"\nup", Empty),
            (b"# up", Empty),
            (b"\xff", NotText),
            (b"up soon", UnknownWord("soon".to_owned())),
            (b"HTTP/1.1 200 OK", UnknownWord("HTTP/1.1".to_owned())),
            (b"up -5%", Weight("-5%".to_owned())),
            (b"%", Weight("%".to_owned())),
            (b"1001%", Weight("1001%".to_owned())),
            (b"99999999999%", Weight("99999999999%".to_owned())),
            (b"75", UnknownWord("75".to_owned())),
        ] {
            assert_eq!(parse(line), Err(expected));
        }
    }

    #[test]
    fn what_is_not_mentioned_stays() {
        let mut axis = Axis::default();
        let mut say = |line: &str| {
            let changed = axis.apply(&parse(line.as_bytes()).unwrap());
            (changed, axis.stance, axis.down.is_some(), axis.weight)
        };
        assert_eq!(say("up"), (false, Stance::Ready, false, 100));
        assert_eq!(say("drain 50%"), (true, Stance::Drain, false, 50));
        assert_eq!(say("down"), (true, Stance::Drain, true, 50));
        assert_eq!(say("ready"), (true, Stance::Ready, true, 50));
        assert_eq!(say("ready"), (false, Stance::Ready, true, 50));
        assert_eq!(say("up 100%"), (true, Stance::Ready, false, 100));
    }

    #[test]
    fn any_word_against_it_is_a_no() {
        let axis = |line: &str| {
            let mut axis = Axis::default();
            axis.apply(&parse(line.as_bytes()).unwrap());
            (axis.is_no(), axis.percent())
        };
        assert_eq!(axis("ready up 100%"), (false, 100));
        assert_eq!(axis("1000%"), (false, 100));
        assert_eq!(axis("7%"), (false, 7));
        assert_eq!(axis("0%"), (true, 0));
        assert_eq!(axis("down 50%"), (true, 50));
        assert_eq!(axis("drain"), (true, 100));
        assert_eq!(axis("maint up"), (true, 100));
    }
}
