//! A regular expression that is part of the configuration.

use std::fmt;
use std::hash::{Hash, Hasher};

use regex::bytes::{Regex, RegexBuilder};

/// Most memory that one compiled pattern may take. The default of the regex crate is 10 MiB; there
/// may be one pattern for each service.
const SIZE_LIMIT: usize = 1 << 20;

/// A regular expression over bytes (syntax of the `regex` crate: no look-around, no
/// back-references), compiled. Searching takes time linear in the text, whatever the pattern.
///
/// Two patterns are equal if their texts are.
#[derive(Clone)]
pub struct Pattern {
    regex: Regex,
}

impl Pattern {
    /// Compiles `text`.
    ///
    /// # Errors
    /// It is not a regular expression, or needs more than 1 MiB compiled.
    pub fn new(text: &str) -> Result<Self, regex::Error> {
        let regex = RegexBuilder::new(text).size_limit(SIZE_LIMIT).build()?;
        Ok(Self { regex })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        self.regex.as_str()
    }

    /// End of the first match in `bytes`.
    pub fn find_end(&self, bytes: &[u8]) -> Option<usize> {
        self.regex.find(bytes).map(|found| found.end())
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.as_str())
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Pattern {}

impl Hash for Pattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}
