//! What the maps hold, read back: what an agent starts from that takes over.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use lb_common::abi::{self, Addr, Backend, Forwarding, LAYOUT_VERSION, ServiceEntry, service_flag};
use lb_common::slot::{BackendIndex, TABLE_SIZES};

use super::maps::{AccessError, Maps};
use super::services;
use crate::model::OnDeath;
use crate::plan::{self, Contents, SnatPorts};

impl Maps {
    /// What the maps hold. Entries that refer to nothing are left out; the next plan covers them.
    pub fn contents(&self) -> Result<Contents, AccessError> {
        let mut contents = Contents::default();
        let params = self.params.get(0);
        if params.version == LAYOUT_VERSION {
            contents.answer_ping = params.answer_ping != 0;
            contents.reset_rate = params.reset_rate;
            contents.ports = Some(SnatPorts {
                first: params.snat_first,
                count: params.snat_count,
            });
        }
        for entry in self.services.iter() {
            let service = self.service(&entry)?;
            contents.services.insert(entry.service.id, service);
        }
        for index in 1..self.backends.entries() {
            if let Some(backend) = self.backend(&self.backends.get(index))? {
                contents.backends.insert(index as BackendIndex, backend);
            }
        }
        let of_others: BTreeSet<IpAddr> = contents.sources_of(|service| !service).collect();
        contents.sources = (1..self.sources.entries())
            .map(|index| self.sources.get(index))
            .filter(|source| *source != Addr::default())
            .map(IpAddr::from)
            // What only other services than NAT's send from needs no look at its packets.
            .filter(|source| !of_others.contains(source))
            .chain(contents.sources_of(|nat| nat))
            .collect();
        Ok(contents)
    }

    fn service(&self, entry: &ServiceEntry) -> Result<plan::Service, AccessError> {
        let value = entry.service;
        let content = |what: String| AccessError::Content {
            name: "SERVICES",
            what,
        };
        let class = usize::from(value.table_class);
        if class >= TABLE_SIZES.len() {
            return Err(content(format!("table class {class}")));
        }
        Ok(plan::Service {
            address: services::endpoint(entry),
            protocol: services::protocol(entry)
                .ok_or_else(|| content(format!("word {:#010x}", entry.word)))?,
            forwarding: Forwarding::ALL
                .into_iter()
                .find(|forwarding| *forwarding as u8 == value.forwarding)
                .ok_or_else(|| content(format!("forwarding {}", value.forwarding)))?,
            affinity: abi::Affinity::ALL
                .into_iter()
                .find(|affinity| *affinity as u8 == value.affinity)
                .ok_or_else(|| content(format!("affinity {}", value.affinity)))?,
            on_death: if value.has(service_flag::RESET_DEAD) {
                OnDeath::Reset
            } else {
                OnDeath::Rehash
            },
            syn_rescue: value.has(service_flag::SYN_RESCUE),
            server_id_length: value.server_id_length,
            slots: Arc::new(self.table(value.id, class)?),
        })
    }

    fn backend(&self, entry: &Backend) -> Result<Option<plan::Backend>, AccessError> {
        use abi::BackendState::{Active, Draining, Out, Unset};
        let state = [Unset, Active, Draining, Out]
            .into_iter()
            .find(|state| *state as u8 == entry.state)
            .ok_or_else(|| AccessError::Content {
                name: "BACKENDS",
                what: format!("state {}", entry.state),
            })?;
        if state == Unset {
            return Ok(None);
        }
        let hop = entry.hops[usize::from(entry.hop & 1)];
        let path = (hop.ifindex != 0).then(|| plan::Path {
            hop,
            source: self.sources.get(entry.source_index.into()).into(),
            mtu: entry.mtu,
            tunnel: plan::Tunnel {
                gue_port: u16::from_be(entry.gue_port),
                source_bits: entry.source_bits,
            },
        });
        Ok(Some(plan::Backend {
            service: entry.service,
            address: SocketAddr::new(entry.addr.into(), u16::from_be(entry.port)),
            server_id: (entry.has_server_id != 0).then_some(entry.server_id),
            watches_http: entry.watches_http != 0,
            state,
            path,
        }))
    }
}
