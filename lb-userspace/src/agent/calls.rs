//! Answers to the control socket.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tracing::info;

use super::RunError;
use super::capture::capture;
use super::explain::explain;
use super::run::Agent;
use super::saved::{Admin, Word};
use crate::api::event::{Change, Kind, Origin};
use crate::api::request::{ProbeReport, ProbesOrder};
use crate::api::{ApiError, BackendName, Call, ErrorKind, Reply, Request, Responder};
use crate::cli::probe::{Group, unknown};
use crate::datapath::Command;
use crate::model::{BackendKey, Node};
use crate::plan::explain::Tuple;

/// Answers one call; whether the agent is to end.
pub async fn answer(agent: &mut Agent, call: Call) -> bool {
    let origin = call.origin();
    let Call {
        request, responder, ..
    } = call;
    if responder.is_left() {
        info!("not done, since who asked has left: {}", request.name());
        return false;
    }
    match request {
        Request::Status { service } => agent.status(service, responder),
        Request::Events { since, limit, .. } => {
            responder.send(Ok(Reply::Events(agent.core.journal.past(since, limit))));
        }
        Request::Drain {
            backend,
            deadline_ms,
        } => {
            drain(agent, &backend, deadline_ms, origin, responder);
        }
        Request::Enable { backend } => {
            let enabled = |old: Word| Word {
                admin: Admin::Enabled,
                ..old
            };
            say(agent, &backend, origin, responder, enabled, |name| {
                format!("{name} is enabled")
            });
        }
        Request::Disable { backend } => {
            let since = Timestamp::now();
            let disabled = |old: Word| match old.admin {
                Admin::Disabled { .. } => old,
                _ => Word {
                    admin: Admin::Disabled { since },
                    ..old
                },
            };
            say(agent, &backend, origin, responder, disabled, |name| {
                format!("{name} is out; its flows are reset")
            });
        }
        Request::Promote { backend } => promote(agent, &backend, origin, responder),
        Request::Weight { backend, weight } => reweigh(agent, &backend, weight, origin, responder),
        Request::Probes { backend, order } => probes(agent, &backend, order, origin, responder),
        Request::Probe { backend, probe } => self::probe(agent, &backend, probe, responder),
        Request::Explain {
            src,
            dst,
            protocol,
            connection_id,
        } => match Tuple::new(src, dst, protocol) {
            Ok(tuple) => explain(agent, tuple.carrying(connection_id), responder),
            Err(error) => {
                responder.send(Err(ApiError::new(ErrorKind::Usage, error.to_string())));
            }
        },
        Request::Capture { service, snaplen } => {
            capture(agent, service, snaplen, origin, responder);
        }
        Request::Reload => match agent.reload(origin).await {
            Ok(what) => responder.done(true, format!("configuration loaded: {what}")),
            Err(RunError::Config(error)) => responder.send(Err(ApiError::config(error))),
            Err(error) => responder.send(Err(ApiError::failed(error))),
        },
        Request::Detach => return detach(agent, responder).await,
    }
    false
}

/// Withdraws the VIPs, then takes the data plane off; whether that was done.
async fn detach(agent: &mut Agent, responder: Responder) -> bool {
    if let Err(error) = agent.withdraw().await {
        let text = format!("nothing was detached, since VIPs could not be withdrawn: {error}");
        responder.send(Err(ApiError::failed(text)));
        return false;
    }
    match agent.writer.ask(Command::Detach).await {
        Ok(_) => {
            responder.done(true, "taken off the interfaces; the agent ends");
            true
        }
        Err(error) => {
            responder.send(Err(ApiError::failed(error)));
            false
        }
    }
}

/// The backend of that name.
fn find(agent: &Agent, name: &BackendName) -> Result<BackendKey, ApiError> {
    let key = name.key();
    match agent.core.model.backend(&key) {
        Some(_) => Ok(key),
        None => Err(unknown(&agent.core.model, name)),
    }
}

/// Changes the operator's word about a backend.
fn say(
    agent: &mut Agent,
    name: &BackendName,
    origin: Origin,
    responder: Responder,
    change: impl FnOnce(Word) -> Word,
    done: impl FnOnce(&BackendName) -> String,
) {
    let key = match find(agent, name) {
        Ok(key) => key,
        Err(error) => return responder.send(Err(error)),
    };
    let old = agent.core.words.get(&key).cloned().unwrap_or_default();
    let new = change(old.clone());
    let changed = new != old;
    let message = done(name);
    if !changed {
        return responder.done(false, format!("{message} already"));
    }
    agent.core.set_word(&key, new);
    let message = match agent.core.nobody_is_left(&key.service) {
        true => format!(
            "{message}; WARNING: no backend of {} is left that is enabled and has a weight: new \
             flows are dropped",
            name.service
        ),
        false => message,
    };
    kept(agent, &key, origin, responder, message);
}

/// Tells of the operator's word, and answers when it is where it outlives the agent.
fn kept(
    agent: &mut Agent,
    key: &BackendKey,
    origin: Origin,
    responder: Responder,
    message: String,
) {
    agent
        .core
        .record(Change::backend(Kind::Admin, key, origin, message.clone()));
    agent.core.save(Some(Box::new(move |result| match result {
        Ok(()) => responder.done(true, message),
        Err(error) => responder.send(Err(ApiError::failed(format!(
            "{message}, but that will not outlive the agent: {error}"
        )))),
    })));
}

fn drain(
    agent: &mut Agent,
    name: &BackendName,
    deadline_ms: Option<u64>,
    origin: Origin,
    responder: Responder,
) {
    let since = Timestamp::now();
    let word = agent.core.words.get(&name.key());
    // Saying it again does not grant more time; another deadline does.
    if deadline_ms.is_none()
        && let Some(Admin::Drain { until, .. }) = word.map(|word| &word.admin)
    {
        return responder.done(false, drains_already(name, *until, since));
    }
    let service = agent.core.model.service(&name.service);
    let usual = service.map_or(Duration::ZERO, |service| service.drain_deadline);
    let deadline = deadline_ms.map_or(usual, Duration::from_millis);
    let ahead = SignedDuration::try_from(deadline).unwrap_or(SignedDuration::MAX);
    let until = since.checked_add(ahead).unwrap_or(Timestamp::MAX);
    let draining = |old: Word| Word {
        admin: Admin::Drain { since, until },
        ..old
    };
    say(agent, name, origin, responder, draining, |name| {
        let seconds = deadline.as_secs_f64();
        format!("{name} drains: no new flows, established ones for up to {seconds} s")
    });
}

/// What is said to whoever drains once more, at `now`.
fn drains_already(name: &BackendName, until: Timestamp, now: Timestamp) -> String {
    let left = until.duration_since(now);
    match left.is_positive() {
        true => format!(
            "{name} drains already: established flows for {} s more",
            left.as_secs()
        ),
        false => format!(
            "{name} is drained already: the time for established flows ended {} s ago",
            -left.as_secs()
        ),
    }
}

/// What the operator has to say about probing.
fn probes(
    agent: &mut Agent,
    name: &BackendName,
    order: ProbesOrder,
    origin: Origin,
    responder: Responder,
) {
    let key = match find(agent, name) {
        Ok(key) => key,
        Err(error) => return responder.send(Err(error)),
    };
    let probed = agent.core.engine.get(&key);
    if probed.is_none_or(|view| view.checks.is_empty()) {
        let text = format!(
            "{name} has no probe; `lb drain {name}` and `lb disable {name}` take it out of service"
        );
        return responder.send(Err(ApiError::new(ErrorKind::Usage, text)));
    }
    match order {
        ProbesOrder::Pause => {
            let now = Timestamp::now();
            let paused = |old: Word| Word {
                paused: old.paused.or(Some(now)),
                ..old
            };
            say(agent, name, origin, responder, paused, |name| {
                format!("the probes of {name} are paused")
            });
        }
        ProbesOrder::Resume => {
            let resumed = |old: Word| Word {
                paused: None,
                ..old
            };
            say(agent, name, origin, responder, resumed, |name| {
                format!("the probes of {name} go on")
            });
        }
        ProbesOrder::Set(health) => {
            let text = format!("{name} is set to {}", health.name());
            match agent.core.set_health(&key, health) {
                Some(true) => kept(agent, &key, origin, responder, text),
                Some(false) | None => responder.done(false, format!("{text} already")),
            }
        }
    }
}

/// Has another backend become the active one of its service.
fn promote(agent: &mut Agent, name: &BackendName, origin: Origin, responder: Responder) {
    let key = match find(agent, name) {
        Ok(key) => key,
        Err(error) => return responder.send(Err(error)),
    };
    match agent.core.promote(&key) {
        Ok(true) => {
            let text = format!("{name} takes over; `lb status {}` tells when", name.service);
            agent
                .core
                .record(Change::backend(Kind::Admin, &key, origin, text.clone()));
            responder.done(true, text);
        }
        Ok(false) => responder.done(false, format!("{name} is the active one already")),
        Err(why) => responder.send(Err(ApiError::new(ErrorKind::Usage, why))),
    }
}

fn reweigh(
    agent: &mut Agent,
    name: &BackendName,
    weight: u32,
    origin: Origin,
    responder: Responder,
) {
    if weight > u32::from(u16::MAX) {
        let text = format!("weight {weight} is out of range: 0 to {}", u16::MAX);
        return responder.send(Err(ApiError::new(ErrorKind::Usage, text)));
    }
    let configured = agent
        .core
        .model
        .backend(&name.key())
        .map(|(_, backend)| backend.weight);
    let weight_word = (configured != Some(weight)).then_some(weight);
    say(
        agent,
        name,
        origin,
        responder,
        |old| Word {
            weight: weight_word,
            ..old
        },
        |name| format!("{name} has weight {weight}"),
    );
}

/// The probes of a backend, or the one of that name, beside the schedule; answered when all are done.
fn probe(agent: &Agent, name: &BackendName, only: Option<String>, responder: Responder) {
    let model = &agent.core.model;
    let Some((service, backend)) = model.backend(&name.key()) else {
        return responder.send(Err(unknown(model, name)));
    };
    let group = match Group::new(service, backend, only.as_deref()) {
        Ok(group) => group,
        Err(none) => {
            return responder.send(Err(ApiError::new(ErrorKind::Usage, none.to_string())));
        }
    };
    let prober = agent.probes.prober();
    tokio::spawn(async move {
        let answers = group.ask(&prober).await;
        responder.send(Ok(Reply::Probe(ProbeReport {
            json: answers.json(),
            text: answers.text(),
        })));
    });
}

/// What a running agent cannot change.
pub fn check_reload(old: &Node, new: &Node) -> Result<(), RunError> {
    let fixed = [
        (
            "node.control_socket",
            old.control_socket != new.control_socket,
            false,
        ),
        ("node.http", old.http != new.http, false),
        ("node.grpc", old.grpc != new.grpc, false),
        (
            "node.haproxy_socket",
            old.haproxy_socket != new.haproxy_socket,
            false,
        ),
        ("node.state_dir", old.state_dir != new.state_dir, false),
        (
            "node.flow_entries",
            old.flow_entries != new.flow_entries,
            true,
        ),
        ("node.snat_ports", old.snat_ports != new.snat_ports, true),
    ];
    match fixed.into_iter().find(|(_, differs, _)| *differs) {
        Some((key, _, true)) => Err(RunError::NeedsDetach { key }),
        Some((key, _, false)) => Err(RunError::NeedsRestart { key }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_drains_once_more_is_told_the_time_that_is_left() {
        let name: BackendName = "web/web-1".parse().unwrap();
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let said = |until: &str| drains_already(&name, until.parse().unwrap(), now);
        assert_eq!(
            said("2026-01-01T00:01:20Z"),
            "web/web-1 drains already: established flows for 20 s more"
        );
        assert_eq!(
            said("2026-01-01T00:00:00Z"),
            "web/web-1 is drained already: the time for established flows ended 60 s ago"
        );
    }
}
