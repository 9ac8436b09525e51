//! Backends that are written by host name: what the names resolve to, and the model that follows
//! from it.
//!
//! ```text
//!   configuration ──▶ Model with names ──┐
//!                                        ├─ expand ──▶ Model with backends ──▶ health, routing, plan
//!   resolve (a task for each name) ──▶ Names
//! ```
//!
//! [`Names`] and [`expand`] are pure; [`resolve`] asks. What cannot be resolved any more keeps its last
//! addresses: an outage of DNS takes no backend out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::{Family, Model, Question, Service};

pub mod resolve;

/// Most addresses of one name that are used, the least ones.
const MOST_ADDRESSES: usize = 256;

/// What a name resolved to, or why it did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub question: Question,
    /// At least one address.
    pub result: Result<BTreeSet<IpAddr>, String>,
}

/// What is known of the names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    known: BTreeMap<Question, Known>,
}

/// What is known of one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// As last resolved, maybe by an earlier agent.
    pub addresses: BTreeSet<IpAddr>,
    /// Why the last attempt failed, if it did.
    pub error: Option<String>,
}

/// A name's addresses, for the next agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedName {
    #[serde(flatten)]
    pub question: Question,
    pub addresses: BTreeSet<IpAddr>,
}

/// What an answer changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Whether there are other addresses than before.
    pub addresses: bool,
    /// What people should know.
    pub words: Option<String>,
}

impl Names {
    /// The addresses that an earlier agent knew.
    pub fn restore(saved: &[SavedName]) -> Self {
        let known = |saved: &SavedName| {
            let family = saved.question.family;
            let addresses = saved.addresses.iter().copied();
            let known = Known {
                addresses: addresses.filter(|ip| Family::of(*ip) == family).collect(),
                error: None,
            };
            (saved.question.clone(), known)
        };
        Self {
            known: saved.iter().map(known).collect(),
        }
    }

    /// The addresses known, for the next agent.
    pub fn save(&self) -> Vec<SavedName> {
        let saved = |(question, known): (&Question, &Known)| SavedName {
            question: question.clone(),
            addresses: known.addresses.clone(),
        };
        let with = self
            .known
            .iter()
            .filter(|(_, known)| !known.addresses.is_empty());
        with.map(saved).collect()
    }

    /// Forgets names that are not asked for any more.
    pub fn retain(&mut self, questions: &BTreeSet<Question>) {
        self.known
            .retain(|question, _| questions.contains(question));
    }

    /// Notes an answer.
    pub fn note(&mut self, answer: Answer) -> News {
        let Answer { question, result } = answer;
        let what = format!("{} ({})", question.host, question.family.record());
        let known = self.known.entry(question).or_default();
        match result {
            Ok(addresses) => {
                let failed = known.error.take().is_some();
                let changed = known.addresses != addresses;
                known.addresses = addresses;
                News {
                    addresses: changed,
                    words: failed.then(|| format!("{what} is resolved again")),
                }
            }
            Err(error) => {
                let kept = match known.addresses.len() {
                    0 => "it has no backends yet".to_owned(),
                    1 => "its last address stays".to_owned(),
                    count => format!("its last {count} addresses stay"),
                };
                let new = known.error.as_ref() != Some(&error);
                let words = new.then(|| format!("{what} cannot be resolved: {error}; {kept}"));
                known.error = Some(error);
                News {
                    addresses: false,
                    words,
                }
            }
        }
    }

    /// All names with what is known of them.
    pub fn iter(&self) -> impl Iterator<Item = (&Question, &Known)> {
        self.known.iter()
    }
}

/// What the names of a model ask for.
pub fn questions(model: &Model) -> BTreeSet<Question> {
    let names = model.names.iter();
    names.map(|named| named.question.clone()).collect()
}

/// The model with a backend for each address of its names, and what is wrong with addresses that are
/// left out. A backend that is written by its address goes before one that a name has.
pub fn expand(configured: &Model, names: &Names) -> (Model, Vec<String>) {
    let mut model = configured.clone();
    let mut problems = Vec::new();
    let vips: BTreeSet<IpAddr> = configured.services.iter().map(|s| s.address.ip()).collect();
    for named in &configured.names {
        let service = model.services.iter_mut().find(|s| s.name == named.service);
        let (Some(service), Some(known)) = (service, names.known.get(&named.question)) else {
            continue;
        };
        for (number, address) in known.addresses.iter().enumerate() {
            let backend = named.at(*address, service);
            let problem = if number >= MOST_ADDRESSES {
                Some("the name has too many")
            } else if let Some(problem) = unusable(*address) {
                Some(problem)
            } else if vips.contains(address) {
                Some("it is a VIP")
            } else {
                taken(service, &backend)
            };
            match problem {
                None => service.backends.push(backend),
                Some(why) => problems.push(format!(
                    "{} resolves to {address}, which is not used: {why}",
                    named.question.host
                )),
            }
        }
    }
    (model, problems)
}

fn taken(service: &Service, new: &crate::model::Backend) -> Option<&'static str> {
    let mut others = service.backends.iter();
    others.find_map(|other| {
        if other.address == new.address {
            Some("another backend of the service is there")
        } else if new.server_id.is_some() && other.server_id == new.server_id {
            Some("its QUIC server ID is that of another backend")
        } else {
            None
        }
    })
}

/// Why no backend can be there.
fn unusable(address: IpAddr) -> Option<&'static str> {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    let local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if address.is_unspecified() || address.is_multicast() || broadcast || mapped {
        Some("it is not the address of a host")
    } else if address.is_loopback() || local {
        Some("packets cannot be forwarded there")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
