//! The memory of events: a bounded ring for `lb events`, a broadcast for its followers, and a
//! bounded file that outlives the agent.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use thiserror::Error;
use tokio::sync::broadcast;
use tracing::warn;

use super::event::{Change, Event};

/// Events kept in memory.
const REMEMBERED: usize = 10_000;
/// Events a follower may lag behind before it misses some.
const FOLLOWER_LAG: usize = 1024;
/// Events on their way to the disk. A disk that hangs costs the file some lines, not the agent its
/// loop.
const QUEUE: usize = 4096;
/// The file is put aside as `events.jsonl.1` at this size: at most twice this is used.
const FILE_BYTES: u64 = 8 << 20;

/// The journal's file cannot be had.
#[derive(Debug, Error)]
#[error("event journal {path}: {source}; node.state_dir must be a directory the agent may write")]
pub struct JournalError {
    path: String,
    source: io::Error,
}

/// Owned by the agent's loop.
#[derive(Debug)]
pub struct Journal {
    ring: VecDeque<Arc<Event>>,
    next_id: u64,
    followers: broadcast::Sender<Arc<Event>>,
    file: Option<Sink>,
}

impl Journal {
    /// A journal in memory only.
    pub fn in_memory() -> Self {
        Self {
            ring: VecDeque::new(),
            next_id: 1,
            followers: broadcast::Sender::new(FOLLOWER_LAG),
            file: None,
        }
    }

    /// A journal with its file `events.jsonl` in `directory`, which is made if need be. What the
    /// file holds is remembered, and numbers go on from there.
    pub fn open(directory: &Path) -> Result<Self, JournalError> {
        Self::with_limit(directory, FILE_BYTES)
    }

    fn with_limit(directory: &Path, limit: u64) -> Result<Self, JournalError> {
        let path = directory.join("events.jsonl");
        let error = |source| JournalError {
            path: path.display().to_string(),
            source,
        };
        std::fs::create_dir_all(directory).map_err(error)?;
        let mut journal = Self::in_memory();
        for past in [aside(&path), path.clone()] {
            journal.remember_file(&past).map_err(error)?;
        }
        let file = Rotating::open(path.clone(), limit).map_err(error)?;
        journal.file = Some(Sink::start(file).map_err(error)?);
        Ok(journal)
    }

    /// The end that [`super::server::serve`] subscribes its followers to.
    pub fn followers(&self) -> broadcast::Sender<Arc<Event>> {
        self.followers.clone()
    }

    /// Gives the change a number and the time, keeps it and tells the followers.
    pub fn record(&mut self, change: Change) -> Arc<Event> {
        let event = Arc::new(Event {
            id: self.next_id,
            at: super::now(),
            change,
        });
        self.remember(event.clone());
        if let Some(file) = &mut self.file {
            file.write(event.clone());
        }
        // No follower is the usual case, not an error.
        let _ = self.followers.send(event.clone());
        event
    }

    /// The last `limit` events after number `since`, oldest first.
    pub fn past(&self, since: Option<u64>, limit: Option<usize>) -> Vec<Arc<Event>> {
        let since = since.unwrap_or(0);
        let start = self.ring.partition_point(|event| event.id <= since);
        let skip = (self.ring.len() - start).saturating_sub(limit.unwrap_or(usize::MAX));
        self.ring.range(start + skip..).cloned().collect()
    }

    fn remember(&mut self, event: Arc<Event>) {
        self.next_id = event.id + 1;
        if self.ring.len() == REMEMBERED {
            self.ring.pop_front();
        }
        self.ring.push_back(event);
    }

    fn remember_file(&mut self, path: &Path) -> io::Result<()> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for line in BufReader::new(file).split(b'\n') {
            // A line cut short by a crash, or of another version, is no reason not to start.
            if let Ok(event) = serde_json::from_slice::<Event>(&line?)
                && event.id >= self.next_id
                && event.id < u64::MAX
            {
                self.remember(Arc::new(event));
            }
        }
        Ok(())
    }
}

/// The thread that writes the file. Dropped, it writes what is queued and ends.
#[derive(Debug)]
struct Sink {
    queue: Option<SyncSender<Arc<Event>>>,
    thread: Option<JoinHandle<()>>,
    lost: u64,
}

impl Sink {
    fn start(mut file: Rotating) -> io::Result<Self> {
        let (queue, events): (_, Receiver<Arc<Event>>) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("lb-journal".to_owned())
            .spawn(move || {
                crate::privileges::give_up_in_thread();
                let mut failing = false;
                for event in events {
                    match file.append(&event) {
                        Ok(()) => failing = false,
                        Err(error) => {
                            if !failing {
                                warn!("writing {}: {error}", file.path.display());
                            }
                            failing = true;
                        }
                    }
                }
            })?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
            lost: 0,
        })
    }

    fn write(&mut self, event: Arc<Event>) {
        let Some(queue) = &self.queue else { return };
        match queue.try_send(event) {
            Ok(()) => self.lost = 0,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                if self.lost == 0 {
                    warn!("the event journal's disk does not keep up: events are not in its file");
                }
                self.lost += 1;
            }
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the event journal's thread failed");
        }
    }
}

/// A file of lines that is put aside when it is full.
struct Rotating {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
    /// The last line may have been written in part.
    cut: bool,
}

impl Rotating {
    fn open(path: PathBuf, limit: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o640)
            .open(&path)?;
        let size = file.metadata()?.len();
        let mut last = [b'\n'];
        if size > 0 {
            file.read_exact_at(&mut last, size - 1)?;
        }
        Ok(Self {
            path,
            file,
            size,
            limit,
            // By a crash, or by a disk that may still be full: nothing is written before an event is.
            cut: last != [b'\n'],
        })
    }

    fn append(&mut self, event: &Event) -> io::Result<()> {
        if self.size >= self.limit {
            match std::fs::rename(&self.path, aside(&self.path)) {
                // It was put aside before, and another one could not be made.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
            *self = Self::open(self.path.clone(), self.limit)?;
        }
        // What was cut short must not take the next event with it.
        let mut line = if self.cut { vec![b'\n'] } else { Vec::new() };
        serde_json::to_writer(&mut line, event)?;
        line.push(b'\n');
        self.cut = true;
        self.file.write_all(&line)?;
        self.cut = false;
        self.size += line.len() as u64;
        Ok(())
    }
}

fn aside(path: &Path) -> PathBuf {
    path.with_extension("jsonl.1")
}

#[cfg(test)]
mod tests {
    use super::super::event::{Kind, Origin};
    use super::*;

    fn change(text: &str) -> Change {
        Change::node(Kind::Started, Origin::Agent, text)
    }

    #[test]
    fn the_past_is_bounded_and_numbered() {
        let mut journal = Journal::in_memory();
        for number in 1..=REMEMBERED + 5 {
            assert_eq!(journal.record(change("x")).id, number as u64);
        }
        assert_eq!(journal.past(None, None).len(), REMEMBERED);
        let ids = |events: Vec<Arc<Event>>| events.iter().map(|event| event.id).collect::<Vec<_>>();
        assert_eq!(ids(journal.past(Some(10_003), None)), [10_004, 10_005]);
        assert_eq!(ids(journal.past(None, Some(1))), [10_005]);
        assert!(journal.past(Some(10_005), None).is_empty());
    }

    #[test]
    fn the_file_is_remembered_after_a_restart_even_when_cut_short() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path()).unwrap();
        journal.record(change("one"));
        journal.record(change("two"));
        drop(journal);
        let path = directory.path().join("events.jsonl");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"id\":3,\"at").unwrap();

        let mut journal = Journal::open(directory.path()).unwrap();
        let past = journal.past(None, None);
        assert_eq!(past.len(), 2);
        assert_eq!(past[1].change.reason, "two");
        assert_eq!(journal.record(change("three")).id, 3);
        drop(journal);
        let journal = Journal::open(directory.path()).unwrap();
        let past = journal.past(None, None);
        assert_eq!(past.len(), 3);
        assert_eq!(past[2].change.reason, "three");
    }

    #[test]
    fn a_line_that_a_full_disk_cut_short_takes_no_other_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let mut file = Rotating::open(path.clone(), FILE_BYTES).unwrap();
        let mut journal = Journal::in_memory();
        file.append(&journal.record(change("one"))).unwrap();
        // As a write leaves it that found room for a part.
        file.file.write_all(b"{\"id\":2,\"at").unwrap();
        file.cut = true;
        journal.record(change("two"));
        file.append(&journal.record(change("three"))).unwrap();
        drop(file);
        let journal = Journal::open(directory.path()).unwrap();
        let reasons: Vec<String> = (journal.past(None, None).iter())
            .map(|event| event.change.reason.clone())
            .collect();
        assert_eq!(reasons, ["one", "three"]);
    }

    #[test]
    fn an_agent_starts_while_the_disk_that_cut_a_line_short_is_full() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        std::fs::write(&path, "{\"id\":2,\"at").unwrap();
        drop(Journal::open(directory.path()).unwrap());
        // Nothing was written for which there might be no room.
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"id\":2,\"at");
    }

    #[test]
    fn a_file_that_could_not_be_made_is_made_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let mut file = Rotating::open(path.clone(), 1).unwrap();
        let mut journal = Journal::in_memory();
        file.append(&journal.record(change("one"))).unwrap();
        // The first half of putting a full file aside.
        std::fs::rename(&path, aside(&path)).unwrap();
        file.append(&journal.record(change("two"))).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("two"));
    }

    #[test]
    fn the_file_never_takes_more_than_twice_its_limit() {
        let directory = tempfile::tempdir().unwrap();
        let limit = 1000;
        let mut journal = Journal::with_limit(directory.path(), limit).unwrap();
        for _ in 0..100 {
            journal.record(change("some words to fill the line"));
        }
        drop(journal);
        let mut total = 0;
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            let size = entry.unwrap().metadata().unwrap().len();
            assert!(size > 0 && size < limit + 300, "{size}");
            total += size;
        }
        assert!(total > limit / 2);
        let journal = Journal::open(directory.path()).unwrap();
        assert_eq!(journal.past(None, Some(1))[0].id, 100);
    }
}
