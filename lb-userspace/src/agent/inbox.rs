//! What the agent's loop listens to.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::passive::Burst;
use super::probes::Report;
use super::{RunError, fence, hooks};
use crate::announce::routes::Report as RouteReport;
use crate::api::Call;
use crate::datapath::Notice;
use crate::discovery::Answer;
use crate::model::ProbeSpec;
use crate::neighbor::{Links, Ways};

/// Requests from the control socket on their way to the loop.
const CALLS: usize = 64;

/// Everything that the loop listens to.
pub(super) struct Inbox {
    pub(super) calls: mpsc::Receiver<Call>,
    pub(super) notices: mpsc::UnboundedReceiver<Notice>,
    pub(super) probes: mpsc::UnboundedReceiver<Report>,
    pub(super) bursts: mpsc::UnboundedReceiver<Burst>,
    pub(super) fences: mpsc::UnboundedReceiver<fence::Ended>,
    pub(super) hooks: mpsc::UnboundedReceiver<hooks::Ended>,
    pub(super) changes: mpsc::UnboundedReceiver<ProbeSpec>,
    pub(super) paths: mpsc::UnboundedReceiver<Arc<Ways>>,
    pub(super) links: mpsc::UnboundedReceiver<Arc<Links>>,
    pub(super) routes: mpsc::UnboundedReceiver<RouteReport>,
    pub(super) answers: mpsc::UnboundedReceiver<Answer>,
    pub(super) hangup: Signal,
    pub(super) terminate: Signal,
    pub(super) interrupt: Signal,
}

/// The other ends of what others than the agent's own parts fill.
pub(super) struct Senders {
    pub(super) calls: mpsc::Sender<Call>,
    pub(super) notices: mpsc::UnboundedSender<Notice>,
    pub(super) paths: mpsc::UnboundedSender<Arc<Ways>>,
    pub(super) links: mpsc::UnboundedSender<Arc<Links>>,
    pub(super) routes: mpsc::UnboundedSender<RouteReport>,
    pub(super) answers: mpsc::UnboundedSender<Answer>,
}

/// Both. What the agent's own parts fill is to be put in by whoever has these.
///
/// # Errors
/// The system's, when signals cannot be listened to.
pub(super) fn inbox() -> Result<(Inbox, Senders), RunError> {
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
        hooks: mpsc::unbounded_channel().1,
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
