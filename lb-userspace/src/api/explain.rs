//! The answer to `explain`, in the operator's names.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::model::{ConnectionId, Protocol};

/// Where a flow goes, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub protocol: Protocol,
    pub service: String,
    /// `nat`, `dsr`, `ipip` or `gue`.
    pub forwarding: String,
    /// `flow`, `client` or `quic`.
    pub affinity: String,
    pub hash: u32,
    /// Index of the flow's slot, from 0.
    pub slot: u32,
    /// Slots in the service's table.
    pub slots: u32,
    /// Whether the slot changes hands.
    pub in_transition: bool,
    /// The slot's owner; absent if it has none.
    pub current: Option<String>,
    /// Its owner before the transition.
    pub previous: Option<String>,
    /// The connection ID that was asked about.
    pub connection_id: Option<ConnectionId>,
    /// The backend that it names.
    pub named: Option<String>,
    /// The flow's entry, if there is one that the service heeds.
    pub flow: Option<FlowEntry>,
    /// What becomes of a SYN; for UDP, of the next datagram.
    pub new: Answer,
    /// What becomes of a packet of an established connection; for UDP, of the next datagram.
    pub established: Answer,
    /// The backends that are named above.
    pub backends: BTreeMap<String, BackendFacts>,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Where it goes; absent if it goes to no backend.
    pub backend: Option<String>,
    /// What it is counted as if it goes to no backend.
    pub verdict: Option<String>,
    pub reason: String,
}

/// A flow's entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowEntry {
    pub backend: String,
    /// `nat`: the addresses its packets leave with.
    pub leaves_from: Option<SocketAddr>,
    pub leaves_to: Option<SocketAddr>,
    /// Whether an end has closed it.
    pub closing: bool,
}

/// A backend as the data plane has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendFacts {
    pub address: SocketAddr,
    /// `active`, `draining` or `out`.
    pub state: String,
}
