//! The thread that writes the state file. A disk may take seconds to flush, and neither probes nor
//! operators may wait for one another because of it.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::error;

use super::saved::Saved;
use crate::datapath::sys;
use crate::privileges;

/// How often the memory that states, decisions and first probes have left free goes back to the
/// kernel: here, where nobody waits for this thread.
const GIVE_BACK: Duration = Duration::from_secs(10);

/// Told when the state is on disk, or why it is not.
pub type Done = Box<dyn FnOnce(Result<(), String>) + Send>;

struct Job {
    saved: Saved,
    done: Option<Done>,
}

/// Writes states, the latest one at the last. Dropped, it finishes what was asked of it.
pub struct Saver {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    problem: watch::Receiver<Option<String>>,
}

impl Saver {
    /// Starts the thread, which writes into `directory`.
    ///
    /// # Errors
    /// The system's, when it has no thread to give.
    pub fn start(directory: PathBuf) -> std::io::Result<Self> {
        let (jobs, queue) = channel();
        let (tell, problem) = watch::channel(None);
        let thread = std::thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || {
                privileges::give_up_in_thread();
                write_all(&directory, &queue, &tell);
            })?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            problem,
        })
    }

    /// Why the last state is not on disk; `None` if it is, or none was written yet.
    pub fn problem(&self) -> Option<String> {
        self.problem.borrow().clone()
    }

    /// Has a state written. One that waits behind a newer one is left out.
    pub fn save(&self, saved: Saved, done: Option<Done>) {
        let sent = self
            .jobs
            .as_ref()
            .map(|jobs| jobs.send(Job { saved, done }));
        if let Some(Err(lost)) = sent
            && let Some(done) = lost.0.done
        {
            done(Err(
                "the thread that writes the state file has ended".to_owned()
            ));
        }
    }
}

fn write_all(
    directory: &std::path::Path,
    queue: &Receiver<Job>,
    problem: &watch::Sender<Option<String>>,
) {
    let mut given_back = Instant::now();
    while let Ok(mut job) = queue.recv() {
        let mut told: Vec<Done> = job.done.take().into_iter().collect();
        while let Ok(mut newer) = queue.try_recv() {
            told.extend(newer.done.take());
            job = newer;
        }
        let result = job
            .saved
            .write(directory)
            .map_err(|error| error.to_string());
        if let Err(error) = &result {
            error!("{error}");
        }
        problem.send_replace(result.clone().err());
        for done in told {
            done(result.clone());
        }
        drop(job);
        if given_back.elapsed() >= GIVE_BACK {
            sys::give_back_memory();
            given_back = Instant::now();
        }
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the thread that writes the state file panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    #[test]
    fn the_latest_state_is_written_and_all_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let saver = Saver::start(directory.path().to_owned()).unwrap();
        let (tell, told) = channel();
        for agent_id in 1..=20 {
            let tell = tell.clone();
            let done: Done = Box::new(move |result| tell.send(result).unwrap());
            saver.save(Saved::new(agent_id, Timestamp::now()), Some(done));
        }
        drop(saver);
        drop(tell);
        assert_eq!(told.iter().filter(Result::is_ok).count(), 20);
        let saved = Saved::read(directory.path()).unwrap().unwrap();
        assert_eq!(saved.agent_id, 20);
    }

    #[test]
    fn a_directory_that_is_gone_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let saver = Saver::start(directory.path().join("gone")).unwrap();
        let (tell, told) = channel();
        let done: Done = Box::new(move |result| tell.send(result).unwrap());
        saver.save(Saved::new(1, Timestamp::now()), Some(done));
        let error = told.recv().unwrap().unwrap_err();
        assert!(error.contains("node.state_dir"), "{error}");
    }

    #[test]
    fn what_keeps_the_state_off_the_disk_is_known_until_it_is_there() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("gone");
        let saver = Saver::start(directory.clone()).unwrap();
        let write = || {
            let (tell, told) = channel();
            let done: Done = Box::new(move |result| tell.send(result).unwrap());
            saver.save(Saved::new(1, Timestamp::now()), Some(done));
            told.recv().unwrap()
        };
        assert_eq!(saver.problem(), None);
        assert_eq!(write().err(), saver.problem());
        assert!(saver.problem().is_some());
        std::fs::create_dir(directory).unwrap();
        write().unwrap();
        assert_eq!(saver.problem(), None);
    }
}
