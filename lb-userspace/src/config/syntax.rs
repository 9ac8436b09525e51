//! From text to TOML tables.

use std::ops::Range;

use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Severity};
use super::reader::{Errors, Reader, Value};
use super::schema::Section;
use super::value::kind_of;

/// Parses TOML.
pub fn parse(text: &str) -> Result<Spanned<DeTable<'_>>, Vec<Diagnostic>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(root);
    }
    let mut found: Vec<Diagnostic> = errors
        .iter()
        .map(|error| {
            let span = error.span().unwrap_or(0..0);
            let help = mend(text, span.clone(), error.message());
            let message = format!("this is not TOML: {}", error.message().replace('\n', "; "));
            Diagnostic::new(Severity::Error, text, span, message, help)
        })
        .collect();
    found.sort_by_key(|found| found.span.start);
    // After an error that may have others as its consequence there is nothing to be trusted.
    let trusted = found
        .iter()
        .position(|found| !stands_alone(&found.message))
        .map_or(found.len(), |last| last + 1);
    found.truncate(trusted);
    Err(found)
}

/// Whether what follows an error can be relied on: after an unclosed quote it cannot.
fn stands_alone(message: &str) -> bool {
    message.contains("must be quoted") || message.contains("duplicate key")
}

/// How to mend a syntax error, as far as the line tells.
fn mend(text: &str, span: Range<usize>, message: &str) -> String {
    if message.contains("duplicate key") {
        return "keep one of the two; a further service or backend starts with [[...]]".into();
    }
    if message.contains("must be quoted")
        && let Some(word) = text.get(span.clone())
    {
        return format!("put text in double quotes: \"{word}\"");
    }
    let at = text.floor_char_boundary(span.start);
    let start = text[..at].rfind('\n').map_or(0, |at| at + 1);
    let line = text[start..].lines().next().unwrap_or_default().trim();
    if line.starts_with('[') {
        return "a table starts with [node] or [[service]], closed on the same line".into();
    }
    match line.split_once('=') {
        Some((key, value)) => {
            let (key, value) = (key.trim(), value.trim());
            if value.is_empty() || value.starts_with('#') {
                format!("give `{key}` a value")
            } else {
                "check that quotes and brackets are closed and that list entries are parted by commas".into()
            }
        }
        None => "write `key = value`, a table header or a comment starting with #".into(),
    }
}

/// The table that `value` must be.
pub fn table<'a>(
    section: &'static Section,
    value: &'a Value<'a>,
    errors: &mut Errors<'_>,
) -> Option<Reader<'a>> {
    match value.get_ref() {
        DeValue::Table(table) => Some(Reader::new(section, table, value.span())),
        other => {
            errors.add(
                value.span(),
                format!(
                    "{} must be a table; this is {}",
                    section.header,
                    kind_of(other)
                ),
                format!(
                    "write {} on a line of its own and the keys below",
                    section.header
                ),
            );
            None
        }
    }
}

/// The list of tables that `value` must be.
pub fn tables<'a>(
    section: &'static Section,
    value: &'a Value<'a>,
    errors: &mut Errors<'_>,
) -> Option<Vec<Reader<'a>>> {
    match value.get_ref() {
        DeValue::Array(list) => list
            .iter()
            .map(|item| table(section, item, errors))
            .collect(),
        other => {
            errors.add(
                value.span(),
                format!(
                    "{} must be a list of tables; this is {}",
                    section.header,
                    kind_of(other)
                ),
                format!(
                    "write {} with double brackets, once for each",
                    section.header
                ),
            );
            None
        }
    }
}
