//! What outlives the agent, in `state_dir/state.json`: the operator's words and the verdicts.
//!
//! The file is written whole under another name, flushed, and moved into place, so that a crash
//! leaves the old one or the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::primaries::SavedPrimary;
use crate::discovery::SavedName;
use crate::health::Restored;
use crate::health::passive::SavedDoubt;
use crate::model::BackendKey;
use crate::private;

const FILE: &str = "state.json";
const VERSION: u32 = 1;

/// The state file cannot be used.
#[derive(Debug, Error)]
pub enum SavedError {
    #[error("{path}: {source}; {}", mend(source))]
    Io { path: PathBuf, source: io::Error },
    #[error("another agent uses {directory}; give this one its own node.state_dir")]
    Taken { directory: PathBuf },
    #[error("{path} is not a state file of lb ({source}); remove it to start without one")]
    Format {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{path} has version {found}, this lb writes {VERSION}; remove it to start without one")]
    Version { path: PathBuf, found: u32 },
}

fn mend(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room there",
        _ => "node.state_dir must be a directory the agent may write",
    }
}

/// Takes the directory for this agent, for as long as the file that it gives is open.
///
/// # Errors
/// When another agent has it, or it cannot be used.
pub fn lock(directory: &Path) -> Result<File, SavedError> {
    let path = directory.join("lock");
    let file = private::open(File::options().append(true), &path);
    match file.map(|file| (file.try_lock(), file)) {
        Ok((Ok(()), file)) => Ok(file),
        Ok((Err(fs::TryLockError::WouldBlock), _)) => Err(SavedError::Taken {
            directory: directory.to_owned(),
        }),
        Ok((Err(fs::TryLockError::Error(source)), _)) | Err(source) => {
            Err(SavedError::Io { path, source })
        }
    }
}

/// The operator's word about a backend.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Word {
    #[serde(default)]
    pub admin: Admin,
    /// Another weight than the configured one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Since when it is not probed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Timestamp>,
}

/// Whether the backend is to be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "snake_case")]
pub enum Admin {
    #[default]
    Enabled,
    /// Established flows may stay until then.
    Drain {
        since: Timestamp,
        until: Timestamp,
    },
    Disabled {
        since: Timestamp,
    },
}

/// The contents of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    version: u32,
    /// Tells the probes of several agents apart; made once.
    pub agent_id: u64,
    pub saved_at: Timestamp,
    pub backends: Vec<SavedBackend>,
    /// The active backends of services that have one at a time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub primaries: Vec<SavedPrimary>,
    /// What host names resolved to, so that an agent that finds DNS out of order has its backends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<SavedName>,
}

/// What is kept of a backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedBackend {
    pub service: Arc<str>,
    pub backend: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub word: Option<Word>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Restored>,
    /// What its packets said, if that has ejected it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<SavedDoubt>,
}

impl Saved {
    /// A state with nothing in it.
    pub fn new(agent_id: u64, saved_at: Timestamp) -> Self {
        Self {
            version: VERSION,
            agent_id,
            saved_at,
            backends: Vec::new(),
            primaries: Vec::new(),
            names: Vec::new(),
        }
    }

    /// The same with these active backends.
    pub fn with_primaries(self, primaries: Vec<SavedPrimary>) -> Self {
        Self { primaries, ..self }
    }

    /// The active backends, by service.
    pub fn primaries(&self) -> BTreeMap<Arc<str>, SavedPrimary> {
        let primaries = self.primaries.iter();
        primaries
            .map(|primary| (primary.service.as_str().into(), primary.clone()))
            .collect()
    }

    /// Puts words, verdicts and ejections by what the packets say together.
    pub fn with(
        mut self,
        words: &BTreeMap<BackendKey, Word>,
        mut verdicts: BTreeMap<BackendKey, Restored>,
        mut doubts: BTreeMap<BackendKey, SavedDoubt>,
    ) -> Self {
        let mut words = words.clone();
        words.retain(|_, word| *word != Word::default());
        let keys = words.keys().chain(verdicts.keys()).chain(doubts.keys());
        let keys: BTreeSet<BackendKey> = keys.cloned().collect();
        self.backends
            .extend(keys.into_iter().map(|key| SavedBackend {
                word: words.remove(&key),
                verdict: verdicts.remove(&key),
                doubt: doubts.remove(&key),
                service: key.service,
                backend: key.backend,
            }));
        self
    }

    /// The operator's words.
    pub fn words(&self) -> BTreeMap<BackendKey, Word> {
        self.collect(|backend| backend.word.clone())
    }

    /// The verdicts, unless they are older than `age`. That of a backend which is not probed is the
    /// operator's and grows no older.
    pub fn verdicts(&self, now: Timestamp, age: Duration) -> BTreeMap<BackendKey, Restored> {
        let passed = now.duration_since(self.saved_at).unsigned_abs();
        self.collect(|backend| {
            let paused = backend.word.as_ref().and_then(|word| word.paused);
            let verdict = backend.verdict.clone();
            verdict
                .filter(|_| passed <= age || paused.is_some())
                .map(|verdict| verdict.later(passed))
        })
    }

    /// The ejections by what the packets said, whatever their age: each says how long it lasts.
    pub fn doubts(&self, now: Timestamp) -> BTreeMap<BackendKey, SavedDoubt> {
        let passed = now.duration_since(self.saved_at).unsigned_abs();
        self.collect(|backend| Some(backend.doubt.clone()?.later(passed)))
    }

    fn collect<T>(&self, of: impl Fn(&SavedBackend) -> Option<T>) -> BTreeMap<BackendKey, T> {
        let entry = |backend: &SavedBackend| {
            let key = BackendKey::new(backend.service.clone(), backend.backend.clone());
            Some((key, of(backend)?))
        };
        self.backends.iter().filter_map(entry).collect()
    }

    /// Reads the state in `directory`; `None` if there is none yet.
    pub fn read(directory: &Path) -> Result<Option<Self>, SavedError> {
        let path = directory.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SavedError::Io { path, source }),
        };
        let saved: Self = match serde_json::from_slice(&text) {
            Ok(saved) => saved,
            Err(source) => return Err(SavedError::Format { path, source }),
        };
        if saved.version != VERSION {
            return Err(SavedError::Version {
                path,
                found: saved.version,
            });
        }
        Ok(Some(saved))
    }

    /// Writes the state into `directory`.
    pub fn write(&self, directory: &Path) -> Result<(), SavedError> {
        let path = directory.join(FILE);
        let write = || -> io::Result<()> {
            let new = directory.join(format!("{FILE}.new"));
            let file = private::open(File::options().write(true).truncate(true), &new)?;
            let mut text = BufWriter::new(file);
            serde_json::to_writer_pretty(&mut text, self)?;
            let file = text.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(directory)?.sync_all()
        };
        write().map_err(|source| SavedError::Io {
            path: path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::passive::Kind;
    use crate::health::{Health, Past, RestoredCheck};

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_full_disk_is_told_from_a_directory_that_is_none() {
        let text = |code| {
            let source = io::Error::from_raw_os_error(code);
            let path = PathBuf::from("state.json");
            SavedError::Io { path, source }.to_string()
        };
        assert!(text(libc::ENOSPC).ends_with("; make room there"));
        assert!(
            text(libc::ENOTDIR)
                .ends_with("; node.state_dir must be a directory the agent may write")
        );
    }

    #[test]
    fn words_and_verdicts_survive() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Saved::read(directory.path()).unwrap(), None);
        let (one, two) = (
            BackendKey::new("web", "web-1"),
            BackendKey::new("web", "web-2"),
        );
        let admin = Admin::Drain {
            since: at("2026-01-01T00:00:00Z"),
            until: at("2026-01-01T00:00:30Z"),
        };
        let words = BTreeMap::from([
            (
                one.clone(),
                Word {
                    admin,
                    weight: Some(7),
                    paused: None,
                },
            ),
            (two.clone(), Word::default()),
        ]);
        let check = RestoredCheck {
            health: Health::Unhealthy,
            gone: true,
            reason: "3 consecutive failures: connection refused".to_owned(),
            leaving: false,
        };
        let verdict = Restored {
            health: Health::Unhealthy,
            gone: true,
            reason: "3 consecutive failures: connection refused".to_owned(),
            address: "10.0.0.12:80".parse().unwrap(),
            past: Past {
                ejections: 2,
                ejected_ago_ms: 7000,
                out: true,
                healthy_for_ms: 0,
            },
            checks: std::iter::once(("http".into(), check)).collect(),
        };
        let verdicts = BTreeMap::from([(two.clone(), verdict.clone())]);
        let doubt = SavedDoubt {
            address: "10.0.0.13:80".parse().unwrap(),
            kind: Kind::Silent,
            age_ms: 5000,
            gone: true,
            reason: "passive: 4 new connections in a row without an answer".to_owned(),
            left_ms: 60_000,
            ends_early: false,
        };
        let three = BackendKey::new("web", "web-3");
        let doubts = BTreeMap::from([(three.clone(), doubt.clone())]);
        let saved = Saved::new(42, at("2026-01-01T00:00:05Z")).with(&words, verdicts, doubts);
        saved.write(directory.path()).unwrap();
        let read = Saved::read(directory.path()).unwrap().unwrap();
        assert_eq!(read, saved);
        assert_eq!(
            read.words(),
            BTreeMap::from([(one.clone(), words[&one].clone())])
        );
        let age = Duration::from_secs(50);
        let later = read.verdicts(at("2026-01-01T00:00:55Z"), age)[&two].clone();
        assert_eq!(later.past.ejected_ago_ms, 57_000);
        assert_eq!(later, verdict.later(Duration::from_secs(50)));
        assert!(read.verdicts(at("2026-01-01T00:00:56Z"), age).is_empty());
        // What the packets said lasts as long as it was to last.
        let doubts = read.doubts(at("2026-01-01T00:00:56Z"));
        assert_eq!(doubts[&three].left_ms, 9000);
        assert_eq!(read.doubts(at("2026-01-01T00:02:00Z"))[&three].left_ms, 0);
    }

    #[test]
    fn the_verdict_of_one_that_is_not_probed_grows_no_older() {
        let verdict: Restored = serde_json::from_str(
            r#"{"health":"unhealthy","gone":false,"reason":"set","address":"10.0.0.11:80"}"#,
        )
        .unwrap();
        let keys = ["b1", "b2"].map(|name| BackendKey::new("web", name));
        let [paused, other] = keys.clone();
        let word = Word {
            paused: Some(at("2026-01-01T00:00:00Z")),
            ..Word::default()
        };
        let words = BTreeMap::from([(paused.clone(), word)]);
        let verdicts = keys.map(|key| (key, verdict.clone())).into();
        let saved = Saved::new(42, at("2026-01-01T00:00:05Z"));
        let saved = saved.with(&words, verdicts, BTreeMap::new());
        let believed = |now| -> Vec<BackendKey> {
            let verdicts = saved.verdicts(at(now), Duration::from_secs(60));
            verdicts.into_keys().collect()
        };
        assert_eq!(believed("2026-01-01T00:01:05Z"), [paused.clone(), other]);
        assert_eq!(believed("2026-02-01T00:00:00Z"), [paused]);
    }

    #[test]
    fn a_directory_is_for_one_agent() {
        let directory = tempfile::tempdir().unwrap();
        let held = lock(directory.path()).unwrap();
        assert!(matches!(
            lock(directory.path()),
            Err(SavedError::Taken { .. })
        ));
        drop(held);
        lock(directory.path()).unwrap();
    }

    #[test]
    fn what_is_not_a_state_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(FILE), "{").unwrap();
        let error = Saved::read(directory.path()).unwrap_err().to_string();
        assert!(error.contains("state.json is not a state file"), "{error}");
        std::fs::write(
            directory.path().join(FILE),
            r#"{"version":9,"agent_id":1,"saved_at":"2026-01-01T00:00:00Z","backends":[]}"#,
        )
        .unwrap();
        assert!(matches!(
            Saved::read(directory.path()),
            Err(SavedError::Version { found: 9, .. })
        ));
    }
}
