//! One finding in a file: where it is, what is wrong and how to mend it, drawn as compilers do.

use std::fmt::{self, Write as _};
use std::ops::Range;

use serde::Serialize;

/// Longest piece of a source line that is shown, in characters.
const EXCERPT: usize = 120;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// It can, but a known mistake is in it.
    Warning,
}

/// A finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    pub severity: Severity,
    /// Stable name of a warning; `None` for errors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'static str>,
    /// What is wrong.
    pub message: String,
    /// The mend.
    pub help: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// Bytes of the file it is about.
    #[serde(skip)]
    pub span: Range<usize>,
    /// The line as shown, and under it the mark.
    #[serde(skip)]
    excerpt: (String, String),
}

impl Diagnostic {
    /// A finding about `span`, in bytes, of `text`. A span that is not in `text` is put at its end.
    pub fn new(
        severity: Severity,
        text: &str,
        span: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        let start = text.floor_char_boundary(span.start);
        let end = text.floor_char_boundary(span.end).max(start);
        let before = text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line_end = text
            .get(start..)
            .and_then(|rest| rest.find('\n'))
            .map_or(text.len(), |at| start + at);
        let source = text.get(line_start..line_end).unwrap_or_default();
        let column = text
            .get(line_start..start)
            .unwrap_or_default()
            .chars()
            .count();
        let width = text
            .get(start..end.min(line_end).max(start))
            .unwrap_or_default()
            .chars()
            .count();
        Self {
            severity,
            id: None,
            message: message.into(),
            help: help.into(),
            line: before.matches('\n').count() + 1,
            column: column + 1,
            span: start..end,
            excerpt: excerpt(source.trim_end_matches('\r'), column, width),
        }
    }

    /// The same finding under a stable name.
    pub fn with_id(mut self, id: &'static str) -> Self {
        self.id = Some(id);
        self
    }

    /// As it is shown to people; `name` is the file's.
    pub fn render(&self, name: &str) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.draw(&mut out, name);
        out
    }

    fn draw(&self, out: &mut String, name: &str) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let id = self.id.map_or(String::new(), |id| format!("[{id}]"));
        let number = self.line.to_string();
        let gutter = " ".repeat(number.len());
        let (source, mark) = &self.excerpt;
        writeln!(out, "{severity}{id}: {}", self.message)?;
        writeln!(out, "{gutter}--> {name}:{}:{}", self.line, self.column)?;
        writeln!(out, "{gutter} |")?;
        writeln!(out, "{}", format!("{number} | {source}").trim_end())?;
        writeln!(out, "{gutter} | {mark}")?;
        writeln!(out, "{gutter} = help: {}", self.help)
    }
}

/// The part of a line around the mark, safe for a terminal, and the mark itself.
fn excerpt(source: &str, column: usize, width: usize) -> (String, String) {
    let skip = if source.chars().count() > EXCERPT {
        column.saturating_sub(EXCERPT / 2)
    } else {
        0
    };
    let shown: String = source
        .chars()
        .skip(skip)
        .take(EXCERPT)
        .map(|c| match c {
            '\t' => ' ',
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect();
    let at = column - skip;
    let width = width.min(shown.chars().count().saturating_sub(at)).max(1);
    (shown, format!("{}{}", " ".repeat(at), "^".repeat(width)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_is_counted_in_characters() {
        let text = "a = 1\n\u{e9}\u{e9} = \"x\"\n";
        let span = text.find("\"x\"").map(|at| at..at + 3).unwrap();
        let found = Diagnostic::new(Severity::Error, text, span, "bad", "mend");
        assert_eq!((found.line, found.column), (2, 6));
        assert_eq!(
            found.render("f"),
            "error: bad\n --> f:2:6\n  |\n2 | \u{e9}\u{e9} = \"x\"\n  |      ^^^\n  = help: mend\n"
        );
    }

    #[test]
    fn long_lines_are_cut_and_control_characters_hidden() {
        let text = format!("{}\u{1b}[2J{}", "x".repeat(500), "y".repeat(500));
        let shown = Diagnostic::new(Severity::Error, &text, 500..504, "m", "h").render("f");
        assert!(!shown.contains('\u{1b}'));
        assert!(
            shown.lines().all(|line| line.chars().count() < 140),
            "{shown}"
        );
        assert!(shown.contains("^^^^"));
    }

    #[test]
    fn a_span_outside_is_put_at_the_end() {
        let found = Diagnostic::new(Severity::Error, "ab\n", 90..95, "m", "h");
        assert_eq!((found.line, found.column), (2, 1));
    }
}
