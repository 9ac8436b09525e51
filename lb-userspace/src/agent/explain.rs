//! `lb explain`: the datapath's answer, in the operator's names.

use std::collections::BTreeMap;
use std::sync::Arc;

use lb_common::abi::BackendState;
use lb_common::slot::BackendIndex;
use tokio::sync::oneshot;

use super::run::Agent;
use crate::api::explain::{Answer, BackendFacts, Explained, FlowEntry};
use crate::api::{ApiError, ErrorKind, Reply, Responder};
use crate::datapath::{self, Command, DatapathError};
use crate::model::{Endpoint, Model, Service, backend_text};
use crate::plan::explain::{Decision, Fate, Tuple};

/// Asks the datapath. Answered beside the loop: the datapath may be busy with a table.
pub fn explain(agent: &Agent, tuple: Tuple, responder: Responder) {
    let (reply, answer) = oneshot::channel();
    if let Err(error) = agent.writer.send(Command::Explain { tuple, reply }) {
        return responder.send(Err(ApiError::failed(error)));
    }
    let model: Arc<Model> = agent.core.model.clone();
    tokio::spawn(async move {
        let answer = match answer.await.map_err(|_| DatapathError::Ended) {
            Ok(Ok(Some(explained))) => Ok(Reply::Explained(name(&model, tuple, &explained).into())),
            Ok(Ok(None)) => Err(no_service(&model, tuple)),
            Ok(Err(error)) | Err(error) => Err(ApiError::failed(error)),
        };
        responder.send(answer);
    });
}

fn at(model: &Model, tuple: Tuple) -> Option<&Service> {
    let services = model.services.iter();
    let candidates = services.filter(|service| service.protocol == tuple.protocol);
    Endpoint::of(tuple.dst, candidates, |service| service.address)
}

fn no_service(model: &Model, tuple: Tuple) -> ApiError {
    let (dst, protocol) = (tuple.dst, tuple.protocol.name());
    if let Some(service) = at(model, tuple) {
        let name = &service.name;
        let text = format!(
            "service {name} is configured, but not yet in the data plane; try again, and see \
             `lb status` for why it is not"
        );
        return ApiError::new(ErrorKind::Busy, text);
    }
    let known: Vec<String> = model
        .services
        .iter()
        .map(|s| format!("{} ({} {})", s.name, s.protocol.name(), s.address))
        .collect();
    let other = Endpoint::of(dst, &model.services, |service| service.address);
    let mend = match (other, known.len()) {
        (Some(other), _) => format!(
            "{} is there for {}: add --protocol {1}",
            other.name,
            other.protocol.name()
        ),
        (None, 0) => "there are none".to_owned(),
        (None, 1..=12) => format!("there are {}", known.join(", ")),
        (None, many) => format!("`lb status` lists all {many}"),
    };
    let text = format!("no {protocol} service at {dst}; {mend}");
    ApiError::new(ErrorKind::Unknown, text)
}

/// Puts names for numbers. What is not configured any more is called by its address.
fn name(model: &Model, tuple: Tuple, explained: &datapath::Explained) -> Explained {
    let service = at(model, tuple);
    let found = &explained.explanation;
    let mut backends = BTreeMap::new();
    let mut backend = |index: BackendIndex| {
        let Some(backend) = explained.backends.get(&index) else {
            return format!("#{index}");
        };
        let address = backend.address;
        let mut known = service.iter().flat_map(|service| &service.backends);
        let name = known
            .find(|known| known.address == address)
            .map_or_else(|| backend_text(address), |known| known.name.to_string());
        let state = match backend.state {
            BackendState::Active => "active",
            BackendState::Draining => "draining",
            BackendState::Out | BackendState::Unset => "out",
        };
        let facts = BackendFacts {
            address,
            state: state.to_owned(),
        };
        backends.insert(name.clone(), facts);
        name
    };
    let owner = |index: BackendIndex| (index != 0).then_some(index);
    let current = owner(found.owner.current()).map(&mut backend);
    let previous = owner(found.owner.previous()).map(&mut backend);
    let named = found.named.map(&mut backend);
    let flow = found.entry.map(|entry| FlowEntry {
        backend: backend(entry.backend),
        leaves_from: entry.rewritten.map(|(from, _)| from),
        leaves_to: entry.rewritten.map(|(_, to)| to),
        closing: entry.closing,
    });
    let mut answer = |decision: Decision| Answer {
        backend: match decision.fate {
            Fate::To(index) => Some(backend(index)),
            Fate::Not(_) => None,
        },
        verdict: match decision.fate {
            Fate::To(_) => None,
            Fate::Not(verdict) => Some(verdict.label().to_owned()),
        },
        reason: decision.reason.text().to_owned(),
    };
    let (new, established) = (answer(found.new), answer(found.established));
    let service = service.map_or_else(|| tuple.dst.to_string(), |s| s.name.to_string());
    Explained {
        src: tuple.src,
        dst: tuple.dst,
        protocol: tuple.protocol,
        service,
        forwarding: found.forwarding.name().to_owned(),
        affinity: found.affinity.name().to_owned(),
        hash: found.hash,
        slot: found.slot,
        slots: found.slots,
        in_transition: found.owner.in_transition(),
        current,
        previous,
        connection_id: tuple.connection_id,
        named,
        flow,
        new,
        established,
        backends,
    }
}
