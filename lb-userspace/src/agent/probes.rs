//! The probes in flight.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::mpsc;

use super::clock::Clock;
use super::passive::{Burst, Questions};
use super::rate::Rate;
use crate::health::Start;
use crate::health::passive::Suspicion;
use crate::model::{Node, ProbeSpec};
use crate::probe::via::Carrier;
use crate::probe::{Class, Outcome, Prober};

/// Probes in flight at a time at most; what is due beyond that waits, those longest due first.
const IN_FLIGHT: usize = 16_384;
/// Descriptors for everything else: maps, sockets of the API, netlink.
const OTHER_DESCRIPTORS: usize = 64;
/// A probe that starts later than this share of its timeout (and than [`GRANULARITY`]) tells of an
/// agent that does not keep up.
const LATE: u32 = 4;
const GRANULARITY: Duration = Duration::from_millis(50);

/// Tasks that are kept for further probes. To make one for each probe would cost more than most of
/// what it does: it is larger than what allocators keep at hand.
const KEPT_TASKS: usize = 64;

/// A probe's end.
pub struct Finished {
    /// [`Start::seq`].
    pub seq: u64,
    pub outcome: Outcome,
    /// How long after it was due it really started.
    pub late: Duration,
    /// So late that the agent does not keep up.
    pub lagging: bool,
}

/// The way to a task that runs one probe after the other. It goes with the probe and comes back with
/// its end, so whoever has it has the task; dropped, the task ends.
pub struct Task(Arc<Slot>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.put(Next::End);
    }
}

/// Where a task finds what it is to do next. A channel would do as well, but keeps room for 32 probes
/// where there is one at most, which is more than all the rest that a probe needs.
#[derive(Default)]
struct Slot(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    next: Option<Next>,
    task: Option<Waker>,
}

enum Next {
    Probe(Job),
    End,
}

impl Slot {
    fn put(&self, next: Next) {
        let task = {
            let mut waiting = self.lock();
            waiting.next = Some(next);
            waiting.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
    }

    async fn take(&self) -> Next {
        let take = |context: &mut Context<'_>| {
            let mut waiting = self.lock();
            match waiting.next.take() {
                Some(next) => Poll::Ready(next),
                None => {
                    waiting.task = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        };
        poll_fn(take).await
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A probe has ended, and its task is free.
pub type Report = (Task, Finished);

struct Job {
    start: Start,
    clock: Clock,
    /// See [`Probes::crowded`].
    crowded: bool,
    task: Task,
}

impl Job {
    async fn run(self, prober: &Prober) -> Report {
        let start = self.start;
        let late = self.clock.now().saturating_sub(start.due);
        let tolerated = GRANULARITY.max(start.spec.timeout / LATE);
        let finished = Finished {
            seq: start.seq,
            outcome: prober.judge(&start.spec).await,
            late,
            lagging: late > tolerated && !self.crowded,
        };
        (self.task, finished)
    }
}

/// How many probes may be in flight for now.
///
/// A host that is short of CPU gets through fewer probes at a time: started all together, none of
/// them would end in time, round after round. So what falls short halves the window, and each probe
/// that does not widens it by one, which doubles it in the time of one probe. Backends that do not
/// answer hold their places for long, but widen it too.
#[derive(Debug)]
struct Window {
    size: usize,
    limit: usize,
}

impl Window {
    const FIRST: usize = 256;
    const LEAST: usize = 32;

    fn new(limit: usize) -> Self {
        Self {
            size: Self::FIRST.min(limit),
            limit,
        }
    }

    /// Another limit, from now on.
    fn bound(&mut self, limit: usize) {
        self.limit = limit;
        self.size = self.size.min(limit);
    }

    fn ended(&mut self, class: Class) {
        self.size = match class {
            Class::Shortage => self.size / 2,
            _ => self.size + 1,
        }
        .max(Self::LEAST)
        .min(self.limit);
    }
}

/// Starts probes, each in a task that it has to itself, and reports their ends.
pub struct Probes {
    prober: Arc<Prober>,
    idle: Vec<Task>,
    report: mpsc::UnboundedSender<Report>,
    in_flight: usize,
    bursts: mpsc::UnboundedSender<Burst>,
    /// For how many in flight there are descriptors.
    descriptors: usize,
    window: Window,
    rate: Rate,
    /// Probes are due for which there is no room: they start late for that, not for the agent's lag.
    crowded: bool,
}

impl Probes {
    /// Also gives where ended probes, ended bursts and what servers say unasked are told.
    ///
    /// For a process with so many descriptors: half of them are for probes in flight, the others for
    /// connections that they keep, and for the rest of the agent.
    pub fn new(
        descriptors: usize,
        node: &Node,
        carrier: Arc<Carrier>,
    ) -> (
        Self,
        mpsc::UnboundedReceiver<Report>,
        mpsc::UnboundedReceiver<Burst>,
        mpsc::UnboundedReceiver<ProbeSpec>,
    ) {
        let (report, finished) = mpsc::unbounded_channel();
        let (bursts, ended) = mpsc::unbounded_channel();
        let (changes, changed) = mpsc::unbounded_channel();
        let descriptors = (descriptors.saturating_sub(OTHER_DESCRIPTORS) / 2).clamp(1, IN_FLIGHT);
        (
            Self {
                prober: Arc::new(Prober::with_carrier(carrier).reporting(changes)),
                report,
                idle: Vec::new(),
                in_flight: 0,
                bursts,
                window: Window::new(in_flight(node, descriptors)),
                rate: Rate::new(node.probes_per_second),
                descriptors,
                crowded: false,
            },
            finished,
            ended,
            changed,
        )
    }

    /// Takes over other limits.
    pub fn set_node(&mut self, node: &Node) {
        self.window.bound(in_flight(node, self.descriptors));
        self.rate.set(node.probes_per_second);
    }

    /// How many more may be started now.
    pub fn room(&self, now: Duration) -> usize {
        let free = self.window.size.saturating_sub(self.in_flight);
        free.min(self.rate.room(now))
    }

    /// When one more may be started; `None`: when one has ended.
    pub const fn ready(&self) -> Option<Duration> {
        if self.in_flight < self.window.size {
            Some(self.rate.ready())
        } else {
            None
        }
    }

    /// Starts what a suspicion asks. Suspicions are few: they do not count among those in flight.
    pub fn start_burst(&self, questions: Questions, suspicion: Suspicion) {
        let (prober, ended) = (self.prober.clone(), self.bursts.clone());
        tokio::spawn(async move {
            // Nobody listens any more when the agent ends.
            let _ = ended.send(questions.ask(&prober, suspicion).await);
        });
    }

    /// Starts all that are due, or as many as there was `room` for; `clock` is the one that their due
    /// times are of.
    pub fn start(&mut self, starts: Vec<Start>, room: usize, clock: Clock) {
        let crowded = self.crowded;
        // None though there is room: nothing is due, or it waits for others.
        if room == 0 || !starts.is_empty() {
            self.crowded = starts.len() >= room;
        }
        self.rate.started(starts.len(), clock.now());
        for start in starts {
            self.in_flight += 1;
            let task = self.idle.pop().unwrap_or_else(|| self.task());
            let slot = task.0.clone();
            slot.put(Next::Probe(Job {
                start,
                clock,
                crowded,
                task,
            }));
        }
    }

    fn task(&self) -> Task {
        let (prober, report) = (self.prober.clone(), self.report.clone());
        let slot = Arc::<Slot>::default();
        let own = slot.clone();
        tokio::spawn(async move {
            while let Next::Probe(job) = own.take().await {
                if report.send(job.run(&prober).await).is_err() {
                    tracing::debug!("a probe ended after the agent");
                }
            }
        });
        Task(slot)
    }

    /// Notes that one has ended, and how.
    pub fn ended(&mut self, task: Task, outcome: &Outcome) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.window.ended(outcome.class);
        if self.idle.len() < KEPT_TASKS {
            self.idle.push(task);
        }
    }

    /// For a probe beside the schedule.
    pub fn prober(&self) -> Arc<Prober> {
        self.prober.clone()
    }
}

/// How many may be in flight by the configuration.
fn in_flight(node: &Node, descriptors: usize) -> usize {
    let wanted = node
        .probes_in_flight
        .map_or(usize::MAX, |most| most as usize);
    wanted.min(descriptors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Egress, ProbeKind};

    #[test]
    fn a_probe_in_flight_is_small() {
        // Of thousands in flight each has one; in a build without optimisation, which is larger.
        let prober = Prober::new();
        let spec = ProbeSpec {
            target: ([192, 0, 2, 1], 80).into(),
            timeout: Duration::from_secs(1),
            kind: Arc::new(ProbeKind::Tcp),
            egress: Egress::default(),
        };
        let size = size_of_val(&prober.judge(&spec));
        assert!(size <= 3072, "{size}");
        assert!(size_of::<Slot>() <= 192, "{}", size_of::<Slot>());
    }

    #[test]
    fn a_shortage_narrows_the_window_and_all_else_widens_it() {
        let mut window = Window::new(1_000);
        assert_eq!(window.size, 256);
        window.ended(Class::Ok);
        window.ended(Class::Timeout);
        assert_eq!(window.size, 258);
        window.ended(Class::Shortage);
        assert_eq!(window.size, 129);
        (0..10).for_each(|_| window.ended(Class::Shortage));
        assert_eq!(window.size, 32, "never none");
        (0..2_000).for_each(|_| window.ended(Class::Ok));
        assert_eq!(window.size, 1_000, "never more than the descriptors allow");
        // With very few descriptors the limit stands above the least.
        let mut window = Window::new(8);
        window.ended(Class::Shortage);
        assert_eq!(window.size, 8);
        // Another configuration may allow fewer, or more again.
        let mut window = Window::new(1_000);
        window.bound(2);
        window.ended(Class::Ok);
        window.ended(Class::Shortage);
        assert_eq!(window.size, 2);
        window.bound(1_000);
        window.ended(Class::Ok);
        assert_eq!(window.size, 32);
    }
}
