//! Start, loop and end.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinError;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use super::attach::attach;
use super::capture::Captures;
use super::clock::Clock;
use super::core::Core;
use super::fence::{self, Fences};
use super::passive::Burst;
use super::probes::{Finished, Probes, Report, Task};
use super::saved::{self, Saved};
use super::saver::Saver;
use super::{RunError, RunOptions, calls};
use crate::announce::routes::{self, Order, Report as RouteReport, Wanted};
use crate::api::event::{Change, Kind, Origin};
use crate::api::http::bind;
use crate::api::token::{Token, TokenError};
use crate::api::{self, Call, Journal, Listener, Reply, Responder, Status, server};
use crate::config;
use crate::datapath::{Attached, Command, Counters, Notice, PinDirectory, Want, Writer, sys};
use crate::discovery::Answer;
use crate::discovery::resolve::{self, Wanted as Questions};
use crate::health::passive;
use crate::model::{Model, Node, OnExit, ProbeSpec};
use crate::neighbor::{self, Links, Ways};
use crate::privileges;
use crate::probe::Class;
use crate::probe::via::Carrier;

/// How often the status that everybody may read is put together.
const PUBLISH: Duration = Duration::from_secs(1);
/// And how many times as long as that took it is left alone, so that the status of ten thousand
/// backends costs the probes no share of the thread that counts. Whoever asks for it by the control
/// socket has a fresh one.
const PUBLISH_REST: u32 = 200;
/// How long it is left alone where there are neither HTTP endpoints nor gRPC's health service to read
/// it: it is then only what the control socket answers with when the loop is too busy, and where
/// HAProxy's commands find the names of servers.
const PUBLISH_SELDOM: Duration = Duration::from_secs(10);
/// Requests from the control socket on their way to the loop.
const CALLS: usize = 64;

/// Everything that the loop listens to.
struct Inbox {
    calls: mpsc::Receiver<Call>,
    notices: mpsc::UnboundedReceiver<Notice>,
    probes: mpsc::UnboundedReceiver<Report>,
    bursts: mpsc::UnboundedReceiver<Burst>,
    fences: mpsc::UnboundedReceiver<fence::Ended>,
    changes: mpsc::UnboundedReceiver<ProbeSpec>,
    paths: mpsc::UnboundedReceiver<Arc<Ways>>,
    links: mpsc::UnboundedReceiver<Arc<Links>>,
    routes: mpsc::UnboundedReceiver<RouteReport>,
    answers: mpsc::UnboundedReceiver<Answer>,
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

/// Everything that the loop acts by.
pub struct Agent {
    pub options: RunOptions,
    pub core: Core,
    pub probes: Probes,
    fences: Fences,
    /// For probes by way of VIPs.
    pub carrier: Arc<Carrier>,
    pub writer: Writer,
    pub attached: Vec<Attached>,
    /// While maps of another layout are in force: whether in a driver.
    pub migrates: Option<bool>,
    /// The interfaces there are; empty until the kernel has told.
    pub links: Arc<Links>,
    /// Why an interface that is back could not be attached to.
    pub attach_error: Option<String>,
    pub counters: Counters,
    /// Why they could not be read.
    count_error: Option<String>,
    pub captures: Captures,
    /// Who waits for the status.
    asked: Vec<(Responder, Option<String>)>,
    targets: watch::Sender<Arc<BTreeSet<IpAddr>>>,
    /// Backends whose probes get no answer.
    silent: mpsc::UnboundedSender<IpAddr>,
    names: watch::Sender<Arc<Questions>>,
    /// Keeps the routes of announced VIPs.
    routes: mpsc::UnboundedSender<Order>,
    /// What it was last told.
    ordered: Option<Wanted>,
    snapshot: watch::Sender<Arc<Status>>,
    token: watch::Sender<Option<Arc<Token>>>,
    /// Told to end, it goes on until then: `node.shutdown_grace`.
    end_at: Option<Instant>,
    /// The status is not put together unasked before.
    publish_after: Instant,
    /// The generation that the datapath was last told.
    told: u64,
}

/// How the loop ends.
pub enum End {
    /// Told to by a signal.
    Signal,
    /// Everything has been taken off the interfaces.
    Detached,
}

/// Runs the loop in the present runtime, and what answers others in the one `beside`.
pub async fn run(options: &RunOptions, beside: &Handle) -> Result<(), RunError> {
    let model = Arc::new(load(&options.config)?);
    let node = model.node.clone();
    let listener = Listener::bind(&node.control_socket, "node.control_socket")?;
    let haproxy = match &node.haproxy_socket {
        Some(path) => Some(Listener::bind(path, "node.haproxy_socket")?),
        None => None,
    };
    let http = match node.http {
        Some(address) => Some(bind("node.http", address).await?),
        None => None,
    };
    let grpc = match node.grpc {
        Some(address) => Some(bind("node.grpc", address).await?),
        None => None,
    };
    let (token, wanted_token) = watch::channel(token(&node)?);
    std::fs::create_dir_all(&node.state_dir).map_err(|source| RunError::System {
        what: "making node.state_dir",
        source,
    })?;
    let _state_dir = saved::lock(&node.state_dir)?;
    let journal = Journal::open(&node.state_dir)?;
    let saved = Saved::read(&node.state_dir)?;
    let saver = Saver::start(node.state_dir.clone()).map_err(|source| RunError::System {
        what: "starting the thread for the state file",
        source,
    })?;
    let clock = Clock::start();
    let (mut inbox, senders) = inbox()?;
    let (writer, opened) = Writer::start(
        PinDirectory::of(&node.control_socket),
        node.flow_entries,
        options.migrate,
        senders.notices,
    )
    .await?;
    let migrates = opened.migrates;
    let attached = match migrates {
        None => attach(&writer, &model, options.replace, &[]).await?,
        // When the maps are filled.
        Some(_) => Vec::new(),
    };
    let carrier = Arc::new(Carrier::open());
    carrier.set_node(&node);
    privileges::give_up().map_err(|source| RunError::System {
        what: "giving up capabilities",
        source,
    })?;
    let followers = journal.followers();
    let metric = routes::metric(&node.control_socket);
    let announced = routes::adopt(metric).await?;
    let core = Core::new(
        clock,
        model.clone(),
        journal,
        saver,
        saved,
        opened.contents,
        announced.clone(),
    );
    let (orders, ordered) = mpsc::unbounded_channel();
    let (silent, doubted) = mpsc::unbounded_channel();
    let (targets, watched) = watch::channel(Arc::new(addresses(&core.model)));
    let (names, wanted) = watch::channel(core.wanted_names());
    let (snapshot, published) = watch::channel(Arc::new(Status::default()));
    let descriptors = sys::raise_descriptors().map_err(|source| RunError::System {
        what: "raising the limit of descriptors",
        source,
    })?;
    let (probes, finished, bursts, changes) = Probes::new(descriptors, &node, carrier.clone());
    (inbox.probes, inbox.bursts, inbox.changes) = (finished, bursts, changes);
    let (fences, ended) = Fences::new();
    inbox.fences = ended;
    let mut agent = Agent {
        options: options.clone(),
        core,
        probes,
        fences,
        carrier,
        writer,
        attached,
        migrates,
        links: Arc::default(),
        attach_error: None,
        counters: Counters::default(),
        count_error: None,
        captures: Captures::default(),
        asked: Vec::new(),
        targets,
        silent,
        names,
        routes: orders,
        ordered: None,
        snapshot,
        token,
        end_at: None,
        publish_after: Instant::now(),
        told: 0,
    };
    agent.started();
    let mut tasks = tokio::task::JoinSet::new();
    let api = server::Agent {
        calls: senders.calls,
        events: followers,
        snapshot: published.clone(),
    };
    if let Some(haproxy) = haproxy {
        tasks.spawn_on(api::haproxy::serve(haproxy, api.clone()), beside);
    }
    tasks.spawn_on(server::serve(listener, api), beside);
    if let Some(http) = http {
        let serve = api::http::serve(http, published.clone(), wanted_token.clone());
        tasks.spawn_on(serve, beside);
    }
    if let Some(grpc) = grpc {
        tasks.spawn_on(api::grpc::serve(grpc, published, wanted_token), beside);
    }
    tasks.spawn_on(
        neighbor::keep_watching(watched, doubted, senders.paths),
        beside,
    );
    tasks.spawn_on(neighbor::keep_watching_links(senders.links), beside);
    tasks.spawn_on(
        routes::keep(metric, announced, ordered, senders.routes),
        beside,
    );
    tasks.spawn_on(resolve::keep_resolving(wanted, senders.answers), beside);
    let result = agent.serve(&mut inbox, &mut tasks).await;
    agent.end(result).await
}

/// Reads the configuration, and logs what `lb check` would warn of.
fn load(path: &Path) -> Result<Model, RunError> {
    let report = config::check::check_file(path)?;
    for warning in report.warnings {
        warn!("{}:{}: {}", path.display(), warning.line, warning.message);
    }
    Ok(report.model)
}

/// What detailed answers are given for.
fn token(node: &Node) -> Result<Option<Arc<Token>>, TokenError> {
    let read = |path: &PathBuf| Token::read(path).map(Arc::new);
    node.http_token_file.as_ref().map(read).transpose()
}

struct Senders {
    calls: mpsc::Sender<Call>,
    notices: mpsc::UnboundedSender<Notice>,
    paths: mpsc::UnboundedSender<Arc<Ways>>,
    links: mpsc::UnboundedSender<Arc<Links>>,
    routes: mpsc::UnboundedSender<RouteReport>,
    answers: mpsc::UnboundedSender<Answer>,
}

fn inbox() -> Result<(Inbox, Senders), RunError> {
    let listen = |kind| {
        signal(kind).map_err(|source| RunError::System {
            what: "listening to signals",
            source,
        })
    };
    let (calls, call_receiver) = mpsc::channel(CALLS);
    let (notices, notice_receiver) = mpsc::unbounded_channel();
    let (paths, path_receiver) = mpsc::unbounded_channel();
    let (links, link_receiver) = mpsc::unbounded_channel();
    let (routes, route_receiver) = mpsc::unbounded_channel();
    let (answers, answer_receiver) = mpsc::unbounded_channel();
    let inbox = Inbox {
        calls: call_receiver,
        notices: notice_receiver,
        probes: mpsc::unbounded_channel().1,
        bursts: mpsc::unbounded_channel().1,
        fences: mpsc::unbounded_channel().1,
        changes: mpsc::unbounded_channel().1,
        paths: path_receiver,
        links: link_receiver,
        routes: route_receiver,
        answers: answer_receiver,
        hangup: listen(SignalKind::hangup())?,
        terminate: listen(SignalKind::terminate())?,
        interrupt: listen(SignalKind::interrupt())?,
    };
    Ok((
        inbox,
        Senders {
            calls,
            notices,
            paths,
            links,
            routes,
            answers,
        },
    ))
}

/// Ends at this time, or never.
async fn ended(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn addresses(model: &Model) -> BTreeSet<IpAddr> {
    let backends = model.services.iter().flat_map(|service| &service.backends);
    backends.map(|backend| backend.address.ip()).collect()
}

impl Agent {
    fn started(&mut self) {
        let names: Vec<&str> = self.attached.iter().map(|on| on.name.as_str()).collect();
        let version = env!("CARGO_PKG_VERSION");
        let what = match self.migrates {
            None => format!("lb {version} on {}", names.join(", ")),
            Some(_) => {
                format!("lb {version}, which fills new maps beside those of another version")
            }
        };
        self.core
            .record(Change::node(Kind::Started, Origin::Agent, what));
        self.publish();
    }

    async fn serve(
        &mut self,
        inbox: &mut Inbox,
        tasks: &mut tokio::task::JoinSet<()>,
    ) -> Result<End, RunError> {
        let mut signs = self.writer.ask(Command::Signs).await?;
        let mut watch = tokio::time::interval(passive::PERIOD);
        watch.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut publish = tokio::time::interval(PUBLISH);
        publish.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.act()?;
            self.change_over().await?;
            let wake = self.core.wake(self.probes.ready());
            tokio::select! {
                Some((task, finished)) = inbox.probes.recv() => {
                    self.finished(task, &finished);
                    while let Ok((task, finished)) = inbox.probes.try_recv() {
                        self.finished(task, &finished);
                    }
                }
                Some(burst) = inbox.bursts.recv() => self.core.probed(&burst),
                _ = watch.tick(), if self.core.watches_signs() => {
                    self.watch_signs(&mut signs);
                    watch.reset_after(self.core.until_signs());
                }
                Some(ended) = inbox.fences.recv() => self.core.fenced(ended),
                Some(notice) = inbox.notices.recv() => self.noticed(notice),
                Some(paths) = inbox.paths.recv() => {
                    let native = self.attached.iter().any(|on| on.native) || self.migrates == Some(true);
                    self.core.moved(&paths, native);
                    self.carrier.set_paths(self.core.paths());
                }
                Some(spec) = inbox.changes.recv() => self.core.hurry(&spec),
                Some(answer) = inbox.answers.recv() => {
                    if self.core.answered(answer) {
                        self.watch_ways();
                    }
                }
                Some(links) = inbox.links.recv() => self.links_changed(links).await,
                Some(report) = inbox.routes.recv() => self.core.routes_changed(report),
                Some(call) = inbox.calls.recv() => {
                    if calls::answer(self, call).await {
                        return Ok(End::Detached);
                    }
                }
                _ = inbox.hangup.recv() => {
                    if let Err(error) = self.reload(Origin::Agent).await {
                        error!("reload refused, the old configuration stays:\n{error}");
                    }
                }
                _ = inbox.terminate.recv() => {
                    if !self.begins_to_end() {
                        return Ok(End::Signal);
                    }
                }
                _ = inbox.interrupt.recv() => return Ok(End::Signal),
                _ = publish.tick() => {
                    self.follow_links().await;
                    if Instant::now() >= self.publish_after || self.readiness_may_differ() {
                        self.count()?;
                    }
                }
                Some(ended) = tasks.join_next() => match ended.map_err(JoinError::try_into_panic) {
                    Err(Ok(panic)) => std::panic::resume_unwind(panic),
                    Ok(()) | Err(Err(_)) => warn!("a task of the agent has ended"),
                },
                () = ended(self.end_at) => return Ok(End::Signal),
                () = sleep_until(self.core.clock.instant(wake)) => {}
            }
        }
    }

    /// Told to end: whether it goes on for a while, with its readiness failing. So those who send it
    /// packets can look for another way first.
    fn begins_to_end(&mut self) -> bool {
        let grace = self.core.model.node.shutdown_grace;
        if self.end_at.is_some() || grace.is_zero() {
            return false;
        }
        self.end_at = Some(Instant::now() + grace);
        self.core.ending();
        self.publish();
        let what = format!("told to end; goes on for {grace:?}, with its readiness failing");
        info!("{what}");
        self.core
            .record(Change::node(Kind::Stopping, Origin::Agent, what));
        true
    }

    /// A probe has ended.
    fn finished(&mut self, task: Task, finished: &Finished) {
        self.probes.ended(task, &finished.outcome);
        if finished.outcome.class == Class::Timeout {
            for address in self.core.asked_of(finished.seq) {
                // The watcher ends only with the agent.
                let _ = self.silent.send(address);
            }
        }
        self.core.finished(finished);
    }

    /// Starts the probes that are due, and tells the datapath what has changed.
    fn act(&mut self) -> Result<(), RunError> {
        let room = self.probes.room(self.core.clock.now());
        let starts = self.core.probes_due(room);
        self.probes.start(starts, room, self.core.clock);
        for start in self.core.fences_due() {
            self.fences.start(start);
        }
        self.core.save_if_due();
        let (contents, generation) = self.core.contents();
        if generation != self.told {
            self.told = generation;
            self.captures.rename(&self.core.model, &contents);
            let gone = self.core.gone();
            self.writer.send(Command::Want(Want {
                contents,
                generation,
                gone,
            }))?;
        }
        let attached = self.is_attached();
        let wanted = self.core.announcements(attached);
        if self.ordered.as_ref() != Some(&wanted) {
            self.order(wanted, None)?;
        }
        Ok(())
    }

    /// Whether the program is on all interfaces.
    fn is_attached(&self) -> bool {
        self.attached.len() == self.core.model.node.interfaces.len()
    }

    fn order(
        &mut self,
        wanted: Wanted,
        done: Option<oneshot::Sender<Result<(), String>>>,
    ) -> Result<(), RunError> {
        self.ordered = Some(wanted.clone());
        let order = Order { wanted, done };
        self.routes.send(order).map_err(|_| RunError::System {
            what: "keeping the routes of announced VIPs",
            source: std::io::ErrorKind::BrokenPipe.into(),
        })
    }

    /// Withdraws all VIPs, before the data plane is taken off. What is told afterwards is what it
    /// should be again.
    ///
    /// # Errors
    /// The routes that could not be removed, and why.
    pub async fn withdraw(&mut self) -> Result<(), String> {
        let nothing = Wanted {
            table: self.core.model.node.announce_table,
            vips: BTreeSet::new(),
        };
        let (done, answer) = oneshot::channel();
        (self.order(nothing, Some(done))).map_err(|error| error.to_string())?;
        answer
            .await
            .unwrap_or_else(|_| Err("nobody keeps the routes".to_owned()))?;
        self.core.withdrawn();
        Ok(())
    }

    /// Reads the configuration again. A bad one changes nothing.
    pub async fn reload(&mut self, origin: Origin) -> Result<String, RunError> {
        let result = self.try_reload().await;
        match &result {
            Ok(what) => self.core.reloaded(origin, what),
            Err(error) => self.core.reload_refused(origin, &error.to_string()),
        }
        result
    }

    async fn try_reload(&mut self) -> Result<String, RunError> {
        let model = Arc::new(load(&self.options.config)?);
        calls::check_reload(&self.core.model.node, &model.node)?;
        let token = token(&model.node)?;
        // Also where nothing has changed: an interface may have been removed and made again.
        if self.migrates.is_none() {
            let gone = self.gone();
            self.attached = attach(&self.writer, &model, self.options.replace, &gone).await?;
        }
        self.token.send_replace(token);
        self.carrier.set_node(&model.node);
        self.probes.set_node(&model.node);
        let what = self.core.reconfigure(model);
        self.watch_ways();
        self.names.send_replace(self.core.wanted_names());
        self.publish();
        Ok(what)
    }

    /// Has the ways to the present backends watched. The watcher ends only with the agent.
    fn watch_ways(&self) {
        self.targets
            .send_replace(Arc::new(addresses(&self.core.model)));
    }

    /// Has the counters read; they come as a notice, since the datapath's thread may be busy.
    fn count(&self) -> Result<(), RunError> {
        Ok(self.writer.send(Command::Count)?)
    }

    /// Answers with the status when the counters have been read.
    pub fn status(&mut self, service: Option<String>, responder: Responder) {
        self.asked.push((responder, service));
        if let Err(error) = self.count() {
            error!("{error}");
            self.answer_status();
        }
    }

    /// Publishes the status, and gives it to those who have asked; to who has asked for one service
    /// with all that is known of it.
    fn answer_status(&mut self) {
        let status = self.publish();
        for (responder, service) in self.asked.drain(..) {
            let status = match service {
                Some(name) => Arc::new(self.core.detailed(&status, &name)),
                None => status.clone(),
            };
            responder.send(Ok(Reply::Status(status)));
        }
    }

    fn noticed(&mut self, notice: Notice) {
        match notice {
            Notice::Counted(result) => {
                match result {
                    Ok(counters) => {
                        self.counters = counters;
                        self.count_error = None;
                    }
                    // The maps can be written all the same: only what is shown grows old.
                    Err(error) => {
                        let text = error.to_string();
                        if self.count_error.as_ref() != Some(&text) {
                            error!("the counters shown are old ones: {text}");
                            self.count_error = Some(text);
                        }
                    }
                }
                self.core.counted(&self.counters);
                self.answer_status();
            }
            other => self.core.noticed(other),
        }
    }

    /// Whether what readiness depends on may be another than was published.
    fn readiness_may_differ(&self) -> bool {
        let published = self.snapshot.borrow();
        let (node, core) = (&published.node, &self.core);
        !node.first_round_done
            || node.attached != self.is_attached()
            || node.datapath_error != core.datapath_error
    }

    /// Puts together the status as it is now.
    pub fn publish(&mut self) -> Arc<Status> {
        let start = Instant::now();
        self.core.clock.follow_wall();
        let status = Arc::new(self.core.status(self));
        self.snapshot.send_replace(status.clone());
        let node = &self.core.model.node;
        let least = match node.http.or(node.grpc) {
            Some(_) => Duration::ZERO,
            None => PUBLISH_SELDOM,
        };
        self.publish_after = Instant::now() + least.max(start.elapsed() * PUBLISH_REST);
        status
    }

    async fn end(mut self, result: Result<End, RunError>) -> Result<(), RunError> {
        self.core.ending();
        self.publish();
        let what = match &result {
            Ok(End::Signal) if self.core.model.node.on_exit == OnExit::Detach => {
                if let Err(error) = self.withdraw().await {
                    warn!("withdrawing the VIPs: {error}");
                }
                self.writer.ask(Command::Detach).await?;
                "told to end; the data plane was taken off (on_exit = \"detach\")".to_owned()
            }
            Ok(End::Signal) => {
                "told to end; the data plane goes on by the last verdicts".to_owned()
            }
            Ok(End::Detached) => "the data plane was taken off".to_owned(),
            Err(error) => format!("{error}; the data plane goes on by the last verdicts"),
        };
        if let Err(error) = self.carrier.close().await {
            warn!("removing the rule for probes by way of VIPs: {error}");
        }
        info!("ended: {what}");
        self.core
            .record(Change::node(Kind::Stopped, Origin::Agent, what));
        self.core.save(None);
        result.map(drop)
    }
}
