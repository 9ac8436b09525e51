//! The thread that owns the [`Datapath`]. Swapping a table waits until no packet uses the old one,
//! 8 to 24 ms, and a walk through the flows can take longer: neither may hold up probing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lb_common::abi::Traffic;
use lb_common::slot::BackendIndex;
use lb_common::verdict::Verdict;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error};

use super::pace::{self, Pace};
use super::{
    Attached, Datapath, DatapathError, PinDirectory, Place, Signs, Sweep, Tap, enter_bpffs,
};
use crate::model::XdpMode;
use crate::plan::explain::{Explanation, Tuple};
use crate::plan::{Backend, Contents, Op, ServiceId, plan};
use crate::privileges;

/// How often the coarse clock of the packet path is set.
const TICK: Duration = Duration::from_secs(1);
/// How often the flows are gone over, at the most.
const SWEEP_INTERVAL: Duration = Duration::from_secs(2);
/// Share of a CPU that going over the flows may take: one part in this many.
const SWEEP_SHARE: u32 = 20;
/// Wait before a failed step is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What the thread is told.
pub enum Command {
    /// What the maps should hold. A later one replaces those not yet carried out.
    Want(Want),
    /// Be there and nowhere else.
    Attach {
        place: Place,
        reply: oneshot::Sender<Result<Vec<Attached>, DatapathError>>,
    },
    /// Be on an interface again that has come back.
    AttachAgain {
        interface: String,
        mode: XdpMode,
        reply: oneshot::Sender<Result<Attached, DatapathError>>,
    },
    /// Say what becomes of a flow; `None` if no service is at its destination.
    Explain {
        tuple: Tuple,
        reply: oneshot::Sender<Result<Option<Explained>, DatapathError>>,
    },
    /// Give a place to capture packets from.
    Tap(oneshot::Sender<Result<Tap, DatapathError>>),
    /// Give a reader of the backends' counters.
    Signs(oneshot::Sender<Result<Signs, DatapathError>>),
    /// Read the counters, and report them.
    Count,
    /// Take everything off the interfaces and end.
    Detach(oneshot::Sender<Result<bool, DatapathError>>),
}

/// What the maps should hold.
#[derive(Clone, Debug)]
pub struct Want {
    pub contents: Arc<Contents>,
    pub generation: u64,
    /// Backends whose flows are to be removed once that is so, because they left the configuration.
    pub gone: BTreeSet<BackendIndex>,
}

/// What becomes of a flow.
#[derive(Clone, Debug)]
pub struct Explained {
    pub explanation: Explanation,
    /// The backends of its service.
    pub backends: BTreeMap<BackendIndex, Backend>,
}

/// What the thread reports.
#[derive(Debug)]
pub enum Notice {
    /// The maps hold this generation's contents.
    Applied {
        generation: u64,
        at: Instant,
        contents: Arc<Contents>,
    },
    /// A step failed; it is tried again.
    Failed(DatapathError),
    /// The counters, for [`Command::Count`].
    Counted(Result<Counters, DatapathError>),
    /// The flows were gone over while the maps held this generation's contents.
    Swept { sweep: Sweep, generation: u64 },
}

/// What there was when the datapath was opened.
#[derive(Clone, Debug)]
pub struct Opened {
    /// What the maps hold already.
    pub contents: Arc<Contents>,
    /// Where maps of another layout are in force until [`Command::Attach`]: whether in a driver.
    pub migrates: Option<bool>,
}

/// Counters of everything the maps hold.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    pub traffic: BTreeMap<BackendIndex, Traffic>,
    /// By service; 0 counts packets that are for none.
    pub verdicts: BTreeMap<ServiceId, Vec<(Verdict, u64)>>,
    /// Whether the program captures packets.
    pub capturing: bool,
}

/// A running datapath thread. It ends when this is dropped.
pub struct Writer {
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Opens the datapath on a thread of its own. With `migrate`, maps of another layout are no
    /// obstacle.
    pub async fn start(
        pins: PinDirectory,
        flow_entries: u32,
        migrate: bool,
        notices: mpsc::UnboundedSender<Notice>,
    ) -> Result<(Self, Opened), DatapathError> {
        let (commands, inbox) = channel();
        let (opened, ready) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("datapath".to_owned())
            .spawn(move || {
                let opening = open(pins.clone(), flow_entries, migrate);
                let (datapath, found) = match opening {
                    Ok(pair) => pair,
                    Err(error) => {
                        // The receiver waits for just this.
                        let _ = opened.send(Err(error));
                        return;
                    }
                };
                let contents = found.contents.clone();
                if opened.send(Ok(found)).is_ok() {
                    Thread::new(datapath, pins, contents, notices).run(&inbox);
                }
            })
            .map_err(DatapathError::Thread)?;
        let found = ready.await.map_err(|_| DatapathError::Ended)??;
        Ok((
            Self {
                commands: Some(commands),
                thread: Some(thread),
            },
            found,
        ))
    }

    /// Tells the thread something.
    pub fn send(&self, command: Command) -> Result<(), DatapathError> {
        let commands = self.commands.as_ref().ok_or(DatapathError::Ended)?;
        commands.send(command).map_err(|_| DatapathError::Ended)
    }

    /// Tells the thread something that it answers.
    pub async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, DatapathError>>) -> Command,
    ) -> Result<T, DatapathError> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply))?;
        answer.await.map_err(|_| DatapathError::Ended)?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the datapath thread panicked");
        }
    }
}

fn open(
    pins: PinDirectory,
    flow_entries: u32,
    migrate: bool,
) -> Result<(Datapath, Opened), DatapathError> {
    enter_bpffs()?;
    let datapath = if migrate {
        Datapath::open_or_migrate(pins, flow_entries)?
    } else {
        Datapath::open(pins, flow_entries)?
    };
    let found = Opened {
        contents: Arc::new(datapath.contents()?),
        migrates: datapath.migrates()?,
    };
    Ok((datapath, found))
}

struct Thread {
    datapath: Datapath,
    pins: PinDirectory,
    notices: mpsc::UnboundedSender<Notice>,
    applied: Arc<Contents>,
    /// The last generation that was applied whole.
    generation: u64,
    pending: Option<Want>,
    gone: BTreeSet<BackendIndex>,
    pace: Pace,
    /// What is pending waits for this, if it swaps tables.
    next_swap: Instant,
    /// Nothing is applied before this.
    next_try: Instant,
    next_tick: Instant,
    next_sweep: Instant,
    failpoint: Failpoint,
}

impl Thread {
    fn new(
        datapath: Datapath,
        pins: PinDirectory,
        applied: Arc<Contents>,
        notices: mpsc::UnboundedSender<Notice>,
    ) -> Self {
        let now = Instant::now();
        Self {
            datapath,
            pins,
            notices,
            applied,
            generation: 0,
            pending: None,
            gone: BTreeSet::new(),
            pace: Pace::default(),
            next_swap: now,
            next_try: now,
            next_tick: now,
            next_sweep: now + TICK,
            failpoint: Failpoint::from_env(),
        }
    }

    fn run(mut self, inbox: &Receiver<Command>) {
        loop {
            self.on_time();
            let mut wake = self.next_tick.min(self.next_sweep);
            if self.pending.is_some() {
                wake = wake.min(self.next_swap.max(self.next_try));
            }
            let wait = wake.saturating_duration_since(Instant::now());
            match inbox.recv_timeout(wait) {
                Ok(first) => {
                    // What waits already may replace what has just come.
                    for command in std::iter::once(first).chain(inbox.try_iter()) {
                        if self.take(command) {
                            return;
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    // What was decided last is to stand, however short ago the last swap was.
                    self.pace = Pace::default();
                    self.next_try = Instant::now();
                    self.apply();
                    return;
                }
            }
            self.apply();
        }
    }

    /// Does as told; whether that was the last thing to do.
    fn take(&mut self, command: Command) -> bool {
        match command {
            Command::Want(want) => self.pending = Some(want),
            Command::Attach { place, reply } => {
                // A caller that has gone away has still been served; likewise below.
                let result = self.datapath.attach(&place);
                // All that needs more than a running agent has is done.
                privileges::give_up_in_thread();
                let _ = reply.send(result);
            }
            Command::AttachAgain {
                interface,
                mode,
                reply,
            } => {
                let _ = reply.send(self.datapath.attach_again(&interface, mode));
            }
            Command::Explain { tuple, reply } => {
                // A caller that has gone away needs no answer.
                let _ = reply.send(Ok(self.explain(tuple)));
            }
            Command::Tap(reply) => {
                // As above; a tap that nobody takes is closed again.
                let _ = reply.send(self.datapath.tap());
            }
            Command::Signs(reply) => {
                // As above.
                let _ = reply.send(self.datapath.signs());
            }
            Command::Count => self.notify(Notice::Counted(self.count())),
            Command::Detach(reply) => {
                let result = super::detach(&self.pins);
                // What could not be taken off is still served, and can be tried again.
                let done = result.is_ok();
                // As above.
                let _ = reply.send(result);
                return done;
            }
        }
        false
    }

    fn explain(&self, tuple: Tuple) -> Option<Explained> {
        let explanation = self.datapath.explain(&self.applied, tuple);
        let backends = |explanation: &Explanation| {
            let backends = self.applied.backends.iter();
            backends
                .filter(|(_, backend)| backend.service == explanation.service)
                .map(|(id, backend)| (*id, backend.clone()))
                .collect()
        };
        explanation.map(|explanation| Explained {
            backends: backends(&explanation),
            explanation,
        })
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.datapath.tick();
        }
        if now >= self.next_sweep {
            let sweep = self.datapath.sweep(&self.applied, &self.gone);
            let took = now.elapsed();
            self.next_sweep = Instant::now() + SWEEP_INTERVAL.max(took * SWEEP_SHARE);
            self.notify(Notice::Swept {
                sweep,
                generation: self.generation,
            });
        }
    }

    fn apply(&mut self) {
        let Some(want) = self.pending.take() else {
            return;
        };
        let ops = plan(&self.applied, &want.contents);
        let swaps = ops.iter().any(|op| matches!(op, Op::Table(..)));
        let ejects = pace::ejects(&self.applied, &want.contents);
        let now = Instant::now();
        let next_swap = self.pace.next(ejects).filter(|_| swaps);
        self.next_swap = next_swap.unwrap_or(now);
        if now < self.next_swap.max(self.next_try) {
            self.pending = Some(want);
            return;
        }
        for (done, op) in ops.iter().enumerate() {
            self.failpoint.pass();
            debug!(step = op.name(), "datapath");
            if let Err(error) = self.datapath.apply(op) {
                let applied = Arc::make_mut(&mut self.applied);
                ops[..done].iter().for_each(|op| op.note(applied));
                // Neither the old contents nor the new.
                self.generation = 0;
                self.next_try = now + RETRY;
                self.pending = Some(want);
                self.notify(Notice::Failed(error));
                return;
            }
        }
        // What noting all steps comes to; and the agent has it already.
        self.applied = want.contents.clone();
        if swaps {
            self.pace.swapped(ejects, now);
        }
        self.generation = want.generation;
        self.gone = want.gone;
        self.notify(Notice::Applied {
            generation: want.generation,
            at: Instant::now(),
            contents: want.contents,
        });
    }

    fn count(&self) -> Result<Counters, DatapathError> {
        let mut counters = Counters {
            capturing: self.datapath.is_captured(),
            ..Counters::default()
        };
        let backends = &self.applied.backends;
        let end = backends.last_key_value().map_or(0, |(last, _)| *last + 1);
        self.datapath.signs()?.read(0..end.into(), |id, traffic| {
            if backends.contains_key(&id) {
                counters.traffic.insert(id, traffic);
            }
        })?;
        for id in std::iter::once(&0).chain(self.applied.services.keys()) {
            counters.verdicts.insert(*id, self.datapath.verdicts(*id)?);
        }
        Ok(counters)
    }

    fn notify(&self, notice: Notice) {
        if self.notices.send(notice).is_err() {
            debug!("nobody listens to the datapath any more");
        }
    }
}

/// `LB_FAILPOINT=plan-step:N` makes a debug build abort before the Nth step that it carries out, as
/// if it were killed there; for tests of interrupted updates.
struct Failpoint(Option<u32>);

impl Failpoint {
    fn from_env() -> Self {
        let wanted = cfg!(debug_assertions)
            .then(|| std::env::var("LB_FAILPOINT").ok())
            .flatten();
        let step = wanted
            .as_deref()
            .and_then(|text| text.strip_prefix("plan-step:"));
        Self(step.and_then(|step| step.parse().ok()))
    }

    fn pass(&mut self) {
        match &mut self.0 {
            Some(0) => std::process::abort(),
            Some(steps) => *steps -= 1,
            None => {}
        }
    }
}
