//! Reads one table of the file against its [`Section`]: types, defaults, unknown keys.

use std::collections::BTreeSet;
use std::ops::Range;

use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Severity};
use super::schema::{ALIASES, Fallback, Key, SECTIONS, Section};
use super::suggest::nearest;

/// A value of the file, with its place.
pub type Value<'a> = Spanned<DeValue<'a>>;

/// Something read, and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct At<T> {
    pub value: T,
    /// Bytes of the value; of the table's header if the key is not written.
    pub span: Range<usize>,
}

/// Why a value cannot be used.
#[derive(Debug)]
pub struct Problem {
    /// Part of the value it is about; `None`: all of it.
    pub span: Option<Range<usize>>,
    pub message: String,
    pub help: String,
}

impl Problem {
    pub fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            span: None,
            message: message.into(),
            help: help.into(),
        }
    }

    pub fn at(self, span: Range<usize>) -> Self {
        Self {
            span: Some(span),
            ..self
        }
    }
}

/// Errors that are shown; a file with more of them is wrong in a way that these tell already.
const MOST: usize = 200;

/// Collects the errors of one file.
#[derive(Debug)]
pub struct Errors<'t> {
    text: &'t str,
    /// Start and end, message and help: so in the order of the file, and the same error at the same
    /// place, for instance in inherited defaults, is kept once.
    found: BTreeSet<(usize, usize, String, String)>,
}

impl<'t> Errors<'t> {
    pub fn new(text: &'t str) -> Self {
        Self {
            text,
            found: BTreeSet::new(),
        }
    }

    /// Adds an error about these bytes of the text.
    pub fn add(&mut self, span: Range<usize>, message: impl Into<String>, help: impl Into<String>) {
        self.found
            .insert((span.start, span.end, message.into(), help.into()));
    }

    /// The first errors in the order of the file, and how many there are beyond them.
    pub fn finish(self) -> (Vec<Diagnostic>, usize) {
        let more = self.found.len().saturating_sub(MOST);
        let shown = (self.found.into_iter().take(MOST))
            .map(|(start, end, message, help)| {
                Diagnostic::new(Severity::Error, self.text, start..end, message, help)
            })
            .collect();
        (shown, more)
    }
}

/// One table, with the table it inherits from.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    pub section: &'static Section,
    table: Option<&'a DeTable<'a>>,
    /// Header of the table, for what is missing in it.
    pub span: Range<usize>,
    parent: Option<&'a Reader<'a>>,
}

impl<'a> Reader<'a> {
    pub fn new(section: &'static Section, table: &'a DeTable<'a>, span: Range<usize>) -> Self {
        Self {
            section,
            table: Some(table),
            span,
            parent: None,
        }
    }

    /// A table that is not in the file; `span` stands for it.
    pub fn absent(section: &'static Section, span: Range<usize>) -> Self {
        Self {
            section,
            table: None,
            span,
            parent: None,
        }
    }

    /// The same table, which takes from `parent` what is not written in it.
    pub fn inherit(self, parent: &'a Reader<'a>) -> Self {
        Self {
            parent: Some(parent),
            ..self
        }
    }

    /// The value written in this very table.
    pub fn own(&self, name: &str) -> Option<&'a Value<'a>> {
        self.table?
            .iter()
            .find(|(key, _)| key.get_ref() == name)
            .map(|(_, value)| value)
    }

    /// Whether `read` is nothing because what is written in this very table is wrong.
    pub fn is_wrong<T>(&self, name: &str, read: Option<&T>) -> bool {
        read.is_none() && self.own(name).is_some()
    }

    /// Place of the key, as opposed to its value, in this very table.
    pub fn key_span(&self, name: &str) -> Option<Range<usize>> {
        self.table?
            .iter()
            .find(|(key, _)| key.get_ref() == name)
            .map(|(key, _)| key.span())
    }

    /// The value written here or in the parent.
    pub fn written(&self, name: &str) -> Option<&'a Value<'a>> {
        self.own(name)
            .or_else(|| self.parent.and_then(|parent| parent.own(name)))
    }

    /// Reads a key: as written, else as inherited, else its default. `None` if there is none of
    /// these, or if it is wrong, which is then among `errors`.
    pub fn get<T>(
        &self,
        errors: &mut Errors<'_>,
        name: &'static str,
        convert: impl FnOnce(&Key, &Value<'_>) -> Result<T, Problem>,
    ) -> Option<At<T>> {
        let Some(key) = self.section.key(name) else {
            errors.add(
                self.span.clone(),
                format!("the schema lacks `{name}`"),
                "this is a defect of lb: please report it",
            );
            return None;
        };
        let (result, span) = match (self.written(name), key.default) {
            (Some(value), _) => (convert(key, value), value.span()),
            (None, Fallback::Value(text)) => {
                let value = DeValue::parse(text)
                    .map_err(|error| Problem::new(error.message(), "report this defect of lb"));
                let result = value.and_then(|value| convert(key, &value));
                (result, self.span.clone())
            }
            (None, Fallback::Required) => {
                errors.add(
                    self.span.clone(),
                    format!("{} lacks `{name}`", self.section.header),
                    format!("add {name} = {}", key.kind.example()),
                );
                return None;
            }
            (None, Fallback::Derived(_) | Fallback::Absent(_)) => return None,
        };
        match result {
            Ok(value) => Some(At { value, span }),
            Err(problem) => {
                let span = problem.span.unwrap_or(span);
                errors.add(span, problem.message, problem.help);
                None
            }
        }
    }

    /// Reports every key that the section does not have.
    pub fn refuse_unknown(&self, errors: &mut Errors<'_>) {
        let Some(table) = self.table else { return };
        for (key, _) in table.iter() {
            let name: &str = key.get_ref();
            if self.section.key(name).is_none() && !self.section.tables.contains(&name) {
                errors.add(
                    key.span(),
                    format!("unknown key `{name}` in {}", self.section.header),
                    unknown_help(self.section, name),
                );
            }
        }
    }
}

/// What was probably meant by `name`.
fn unknown_help(section: &Section, name: &str) -> String {
    let names: Vec<&str> = (section.keys.iter().map(|key| key.name))
        .chain(section.tables.iter().copied())
        .collect();
    let lower = name.to_lowercase().replace('-', "_");
    if let Some(meant) = nearest(&lower, &names) {
        return format!("did you mean `{meant}`?");
    }
    let elsewhere: BTreeSet<&str> = SECTIONS
        .iter()
        .filter(|other| other.key(&lower).is_some() || other.tables.contains(&lower.as_str()))
        .map(|other| other.header)
        .collect();
    if !elsewhere.is_empty() {
        let list: Vec<&str> = elsewhere.into_iter().collect();
        return format!("`{lower}` belongs in {}", list.join(" or "));
    }
    let alias = ALIASES.iter().find(|(alias, _)| *alias == lower);
    if let Some((_, meant)) = alias.filter(|(_, meant)| names.contains(meant)) {
        return format!("did you mean `{meant}`?");
    }
    format!("remove it; known here: {}", names.join(", "))
}
