//! `on_announce` and `on_withdraw`: commands that are run once a VIP's route stands, or is gone.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tracing::{error, info};

use super::core::Core;
use crate::api::event::{Change, Kind, Origin};
use crate::model::{Model, Service};
use crate::probe;

/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(30);

/// A command to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    service: Arc<str>,
    announced: bool,
    command: Vec<String>,
    vip: IpAddr,
    /// Of the service, as it is written: `80`, `8000-8099`, `*`.
    ports: String,
    reason: String,
}

/// A command's end.
#[derive(Debug)]
pub struct Ended {
    hook: Hook,
    result: Result<String, String>,
}

/// Runs commands, those of one service one after the other, and reports their ends.
#[derive(Debug)]
pub struct Hooks {
    report: mpsc::UnboundedSender<Ended>,
    /// Whose turn it is, by service.
    turns: BTreeMap<Arc<str>, Arc<Mutex<()>>>,
}

impl Hook {
    /// What a service wants to be run when its VIP is announced, or withdrawn.
    fn of(service: &Service, announced: bool, reason: &str) -> Option<Self> {
        let rules = service.announce.as_ref()?;
        let command = match announced {
            true => rules.on_announce.as_ref(),
            false => rules.on_withdraw.as_ref(),
        };
        Some(Self {
            service: service.name.clone(),
            announced,
            command: command?.clone(),
            vip: service.address.ip(),
            ports: service.address.ports.to_string(),
            reason: reason.to_owned(),
        })
    }

    /// The key that it is written under.
    const fn key(&self) -> &'static str {
        match self.announced {
            true => "on_announce",
            false => "on_withdraw",
        }
    }

    /// What the command is told, in the names of the exec probe.
    fn environment(&self) -> [(&'static str, String); 5] {
        let event = if self.announced {
            "announced"
        } else {
            "withdrawn"
        };
        [
            ("LB_SERVICE", self.service.to_string()),
            ("LB_ADDRESS", self.vip.to_string()),
            ("LB_PORT", self.ports.clone()),
            ("LB_EVENT", event.to_owned()),
            ("LB_REASON", self.reason.clone()),
        ]
    }
}

/// What all services of a VIP want to be run.
pub(super) fn of_vip(model: &Model, vip: IpAddr, announced: bool, reason: &str) -> Vec<Hook> {
    let services = model.services.iter();
    let services = services.filter(|service| service.address.ip() == vip);
    services
        .filter_map(|service| Hook::of(service, announced, reason))
        .collect()
}

impl Hooks {
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Ended>) {
        let (report, ended) = mpsc::unbounded_channel();
        let hooks = Self {
            report,
            turns: BTreeMap::new(),
        };
        (hooks, ended)
    }

    /// Runs a command when those of its service that were started before have ended.
    pub fn start(&mut self, hook: Hook) -> JoinHandle<()> {
        let turn = self.turns.entry(hook.service.clone()).or_default().clone();
        let report = self.report.clone();
        tokio::spawn(async move {
            // Whoever asked first has it first.
            let _turn = turn.lock().await;
            let result = probe::run_command(&hook.command, hook.environment(), LIMIT).await;
            let (service, key) = (&hook.service, hook.key());
            match &result {
                Ok(said) => info!(%service, "{key}: {said}"),
                Err(why) => error!(%service, "{key}: {why}"),
            }
            if report.send(Ended { hook, result }).is_err() {
                tracing::debug!("a command ended after the agent");
            }
        })
    }
}

impl Core {
    /// The commands to run now.
    pub fn hooks_due(&mut self) -> Vec<Hook> {
        std::mem::take(&mut self.hooks)
    }

    /// A VIP's route stands, or is gone.
    pub(super) fn hook(&mut self, vip: IpAddr, announced: bool, reason: &str) {
        let mut hooks = of_vip(&self.model, vip, announced, reason);
        let former = self.withdrawals.remove(&vip);
        if announced {
            let later = of_vip(&self.model, vip, false, "no service asks for it any more");
            self.withdrawals.insert(vip, later);
        } else if !self.asks_for(vip) {
            // It has left the configuration, and so has its command.
            hooks = former.unwrap_or_default();
        }
        self.hooks.extend(hooks);
    }

    fn asks_for(&self, vip: IpAddr) -> bool {
        let mut services = self.model.services.iter();
        services.any(|service| service.announce.is_some() && service.address.ip() == vip)
    }

    /// A command has ended.
    pub fn hooked(&mut self, ended: Ended) {
        let Ended { hook, result } = ended;
        if let Err(why) = result {
            let what = format!("{}: {why}", hook.key());
            self.record(Change::service(
                Kind::CommandFailed,
                &hook.service,
                Origin::Agent,
                what,
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Model {
        let text = "[node]\ninterfaces = [\"eth0\"]\nallow_exec = true\n\
            [[service]]\nname = \"web\"\naddress = \"203.0.113.10:80\"\nannounce = \"route\"\n\
            on_announce = [\"/up\", \"web\"]\non_withdraw = [\"/down\"]\n\
            [[service.backend]]\naddress = \"10.0.0.11:80\"\n\
            [[service]]\nname = \"tls\"\naddress = \"203.0.113.10:443\"\nannounce = \"route\"\n\
            on_withdraw = [\"/down\", \"tls\"]\n\
            [[service.backend]]\naddress = \"10.0.0.11:443\"\n\
            [[service]]\nname = \"other\"\naddress = \"203.0.113.11:8000-8099\"\n\
            announce = \"route\"\non_announce = [\"/up\", \"other\"]\n\
            [service.health]\nport = 8000\n\
            [[service.backend]]\naddress = \"10.0.0.11\"\n";
        crate::config::parse(text, "lb.toml").unwrap()
    }

    #[test]
    fn all_services_of_the_vip_are_told() {
        let model = model();
        let told = |vip: &str, announced| -> Vec<_> {
            let hooks = of_vip(&model, vip.parse().unwrap(), announced, "why");
            hooks.into_iter().map(|hook| hook.command).collect()
        };
        assert_eq!(told("203.0.113.10", true), [vec!["/up", "web"]]);
        assert_eq!(
            told("203.0.113.10", false),
            [vec!["/down"], vec!["/down", "tls"]]
        );
        assert!(told("203.0.113.11", false).is_empty());
        let hook = of_vip(&model, "203.0.113.11".parse().unwrap(), true, "why");
        let environment = hook[0].environment().map(|(_, value)| value);
        let wanted = ["other", "203.0.113.11", "8000-8099", "announced", "why"];
        assert_eq!(environment, wanted);
    }

    #[tokio::test]
    async fn commands_of_one_service_do_not_overtake_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let hook = |script: String, announced| Hook {
            service: "web".into(),
            announced,
            command: vec!["/bin/sh".into(), "-c".into(), script],
            vip: "203.0.113.10".parse().unwrap(),
            ports: "80".to_owned(),
            reason: "because".to_owned(),
        };
        let say = |before: &str| {
            let log = log.display();
            format!("{before} echo $LB_EVENT $LB_SERVICE $LB_ADDRESS:$LB_PORT $LB_REASON >> {log}")
        };
        let (mut hooks, mut ended) = Hooks::new();
        // The first takes its time.
        let last = [
            hooks.start(hook(say("sleep 0.2;"), true)),
            hooks.start(hook(say(""), false)),
            hooks.start(hook("exit 3".to_owned(), true)),
        ];
        for task in last {
            task.await.unwrap();
        }
        let text = std::fs::read_to_string(&log).unwrap();
        assert_eq!(
            text,
            "announced web 203.0.113.10:80 because\nwithdrawn web 203.0.113.10:80 because\n"
        );
        let results: Vec<_> = std::iter::from_fn(|| ended.try_recv().ok()).collect();
        assert!(results[0].result.is_ok() && results[1].result.is_ok());
        let why = results[2].result.as_ref().unwrap_err();
        assert!(why.contains("exit status 3"), "{why}");
    }
}
