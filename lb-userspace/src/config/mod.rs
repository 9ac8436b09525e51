//! Reads the configuration: TOML text in, a checked [`Model`] out, or every error there is in it,
//! each with its line, column, cause and mend.
//!
//! [`schema`] says which keys there are; the other modules only what they mean together.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;
use toml::de::DeTable;

use crate::model::Model;

mod announce;
pub mod budget;
pub mod check;
mod deciding;
mod diagnostic;
pub mod duration;
mod egress;
mod health;
mod kinds;
mod lint;
mod mode;
mod node;
mod places;
mod pool;
mod reader;
mod rules;
pub mod schema;
mod script;
mod service;
mod several;
pub(crate) mod suggest;
mod syntax;
mod value;
mod web;

pub use diagnostic::{Diagnostic, Severity};
use places::Places;
use reader::{Errors, Reader};

/// A configuration that was read from a file.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub model: Model,
    /// The file as it was read.
    pub text: String,
    pub path: PathBuf,
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("error: {path} cannot be read: {cause}\n = help: {}", read_help(cause))]
    Read { path: String, cause: io::Error },
    #[error("error: {path} is a directory\n = help: name the file in it")]
    Directory { path: String },
    /// The file was read, and is wrong.
    #[error("{}", render(name, errors, *more))]
    Invalid {
        name: String,
        /// In the order of the file; at least one.
        errors: Vec<Diagnostic>,
        /// How many further ones are left out.
        more: usize,
    },
}

impl ConfigError {
    /// What is wrong and how to mend it, each time; with places if the file could be read.
    pub fn to_json(&self) -> serde_json::Value {
        let unreadable = |message: String, help: &str| serde_json::json!([{"severity": Severity::Error, "message": message, "help": help}]);
        match self {
            Self::Read { path, cause } => {
                unreadable(format!("{path} cannot be read: {cause}"), read_help(cause))
            }
            Self::Directory { path } => {
                unreadable(format!("{path} is a directory"), "name the file in it")
            }
            Self::Invalid { errors, .. } => serde_json::json!(errors),
        }
    }
}

fn read_help(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::NotFound => "check the path; relative paths start at the working directory",
        io::ErrorKind::PermissionDenied => {
            "run as the agent's user or make the file readable to it"
        }
        _ => "is it the right file? See to the file system and try again",
    }
}

fn render(name: &str, errors: &[Diagnostic], more: usize) -> String {
    let mut shown: Vec<String> = errors.iter().map(|error| error.render(name)).collect();
    if more > 0 {
        shown.push(format!("and {more} more errors\n"));
    }
    shown.join("\n")
}

/// Reads the file at `path`.
///
/// # Errors
/// [`ConfigError`]; its text is complete, may have many lines and ends with a newline where it
/// draws an excerpt.
pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
    let name = path.display().to_string();
    let text = read(path, &name)?;
    let model = parse(&text, &name)?;
    Ok(Loaded {
        model,
        text,
        path: path.to_owned(),
    })
}

/// Bytes of the longest file: far more than any configuration, and less than what would cost a host
/// its memory.
const LONGEST: u64 = 64 << 20;

/// The text of the file at `path`, called `name` in errors.
fn read(path: &Path, name: &str) -> Result<String, ConfigError> {
    if path.is_dir() {
        return Err(ConfigError::Directory { path: name.into() });
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes))
        .and_then(|read| match read as u64 > LONGEST {
            true => Err(io::Error::other("it has more than 64 MiB")),
            false => Ok(()),
        })
        .map_err(|cause| ConfigError::Read {
            path: name.into(),
            cause,
        })?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(error.as_bytes());
        // Up to `at` the lossy text is the same, and the replacement character stands there.
        let end = at + char::REPLACEMENT_CHARACTER.len_utf8();
        ConfigError::Invalid {
            name: name.into(),
            more: 0,
            errors: vec![Diagnostic::new(
                Severity::Error,
                &text,
                at..end,
                "the file is not UTF-8 text",
                "save it as UTF-8; is it the right file?",
            )],
        }
    })
}

/// Reads configuration text; `name` stands for the file in errors.
///
/// # Errors
/// [`ConfigError::Invalid`] with everything that is wrong; if the text is not TOML, only with that.
pub fn parse(text: &str, name: &str) -> Result<Model, ConfigError> {
    parse_with_places(text, name).map(|(model, _)| model)
}

/// As [`parse`], with the places of what was read, for warnings.
fn parse_with_places(text: &str, name: &str) -> Result<(Model, Places), ConfigError> {
    let invalid = |errors, more| ConfigError::Invalid {
        name: name.into(),
        errors,
        more,
    };
    let root = syntax::parse(text).map_err(|errors| invalid(errors, 0))?;
    let mut errors = Errors::new(text);
    let read = read_root(root.get_ref(), &mut errors);
    let (found, more) = errors.finish();
    match read {
        Some(read) if found.is_empty() => Ok(read),
        _ => Err(invalid(found, more)),
    }
}

/// Reads the whole file. `None` only if there are errors.
fn read_root<'a>(table: &'a DeTable<'a>, errors: &mut Errors<'_>) -> Option<(Model, Places)> {
    let root = Reader::new(&schema::ROOT, table, 0..0);
    root.refuse_unknown(errors);

    let of_node = match root.own("node") {
        Some(value) => syntax::table(&schema::NODE, value, errors),
        None => {
            errors.add(
                0..0,
                "the file lacks the table [node]",
                "add [node] with interfaces = [\"eth0\"], naming the interfaces traffic comes in on",
            );
            None
        }
    };
    let node = of_node
        .as_ref()
        .and_then(|reader| node::read(reader, errors));

    let defaults = root
        .own("defaults")
        .and_then(|value| syntax::table(&schema::DEFAULTS, value, errors))
        .and_then(|reader| {
            reader.refuse_unknown(errors);
            let value = reader.own("health")?;
            syntax::table(&schema::HEALTH, value, errors)
        });
    if let Some(defaults) = &defaults {
        defaults.refuse_unknown(errors);
        // What no service inherits must be right as well.
        health::read(defaults, errors);
    }

    let tables = root.own("service").map_or(Some(Vec::new()), |value| {
        syntax::tables(&schema::SERVICE, value, errors)
    });
    let drafts: Vec<service::Draft> = tables
        .iter()
        .flatten()
        .map(|reader| service::read(reader, defaults.as_ref(), errors))
        .collect();
    rules::across_services(&drafts, errors);
    if let Some(node) = &node {
        rules::commands_allowed(node, &drafts, errors);
    }

    let places = Places::new(of_node.as_ref(), &drafts);
    let mut services = Vec::new();
    let mut names = Vec::new();
    for draft in drafts {
        let (service, of_service) = draft.finish()?;
        services.push(service);
        names.extend(of_service);
    }
    tables.map(|_| ())?;
    Some((
        Model {
            node: node?,
            services,
            names,
        },
        places,
    ))
}
