//! Backends that are written by host name: what they resolve to becomes part of the model.

use std::collections::BTreeSet;
use std::sync::Arc;

use tracing::{info, warn};

use super::core::Core;
use crate::api::event::{Change, Kind, Origin};
use crate::api::status::NameStatus;
use crate::discovery::resolve::Wanted;
use crate::discovery::{self, Answer, Names};
use crate::model::{Family, Model};

/// The configuration as it was read, and what is known of the names in it.
pub struct Discovery {
    configured: Arc<Model>,
    names: Names,
    /// What was last said of addresses that are left out.
    problems: BTreeSet<String>,
}

impl Discovery {
    pub fn new(configured: Arc<Model>, names: Names) -> Self {
        let mut discovery = Self {
            configured,
            names,
            problems: BTreeSet::new(),
        };
        discovery.names.retain(&discovery.questions());
        discovery
    }

    fn questions(&self) -> BTreeSet<crate::model::Question> {
        discovery::questions(&self.configured)
    }

    /// The names with what is known of them.
    pub const fn names(&self) -> &Names {
        &self.names
    }

    /// The model that follows from what is known.
    pub fn model(&mut self) -> Arc<Model> {
        if self.configured.names.is_empty() {
            return self.configured.clone();
        }
        let (model, problems) = discovery::expand(&self.configured, &self.names);
        let problems: BTreeSet<String> = problems.into_iter().collect();
        for problem in problems.difference(&self.problems) {
            warn!("{problem}");
        }
        self.problems = problems;
        Arc::new(model)
    }
}

impl Core {
    /// What is to be asked of DNS.
    pub fn wanted_names(&self) -> Arc<Wanted> {
        let node = &self.discovery.configured.node;
        Arc::new(Wanted {
            questions: self.discovery.questions(),
            servers: node.dns_servers.clone(),
            longest: node.dns_max_ttl,
        })
    }

    /// Takes over a new configuration; says what is new.
    pub fn reconfigure(&mut self, configured: Arc<Model>) -> String {
        self.discovery.configured = configured;
        self.discovery.names.retain(&self.discovery.questions());
        let model = self.discovery.model();
        self.configure(
            model,
            Origin::Config,
            ["new in the configuration", "no longer in the configuration"],
        )
    }

    /// DNS has answered, or has not. Says whether there are other backends now.
    pub fn answered(&mut self, answer: Answer) -> bool {
        // One that is not asked for any more may still have been on its way.
        if !self.discovery.questions().contains(&answer.question) {
            return false;
        }
        let host = answer.question.host.clone();
        let news = self.discovery.names.note(answer);
        if let Some(words) = news.words {
            warn!("{words}");
            self.record(Change::node(Kind::Name, Origin::Agent, words));
        }
        if !news.addresses {
            return false;
        }
        let model = self.discovery.model();
        let new = format!("{host} has this address now");
        let gone = format!("{host} does not have this address any more");
        let what = self.configure(model, Origin::Agent, [&new, &gone]);
        info!("{host}: {what}");
        true
    }

    /// For the status.
    pub(super) fn name_statuses(&self) -> Vec<NameStatus> {
        let status = |(question, known): (&crate::model::Question, &discovery::Known)| NameStatus {
            name: question.host.clone(),
            family: match question.family {
                Family::Ipv4 => "ipv4".to_owned(),
                Family::Ipv6 => "ipv6".to_owned(),
            },
            addresses: known.addresses.iter().map(ToString::to_string).collect(),
            error: known.error.clone(),
        };
        self.discovery.names.iter().map(status).collect()
    }
}
