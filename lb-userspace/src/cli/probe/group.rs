//! All probes of a backend, and what they say together.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use thiserror::Error;

use super::{to_json, to_text};
use crate::config::suggest::nearest;
use crate::model::{Backend, BackendKey, ProbeKind, ProbeSpec, Service};
use crate::probe::{Outcome, Prober, Verdict};

/// What is to be asked of a backend.
pub struct Group {
    /// `service/backend`.
    target: String,
    questions: Vec<Question>,
}

struct Question {
    name: Arc<str>,
    spec: ProbeSpec,
    /// An agent beside other probes: that it cannot be reached says nothing.
    advisory: bool,
}

/// Nothing can be asked.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NoProbe {
    #[error("{0} has no probe (health.probe = \"none\")")]
    Unprobed(BackendKey),
    #[error("{key} has no probe {name:?}; {help}")]
    Unknown {
        key: BackendKey,
        name: String,
        help: String,
    },
}

/// What came of it.
pub struct Answers<'a> {
    group: &'a Group,
    outcomes: Vec<Outcome>,
}

impl Group {
    /// The probes of a backend, or the one of this name.
    ///
    /// # Errors
    /// There are none, or none of that name.
    pub fn new(service: &Service, backend: &Backend, only: Option<&str>) -> Result<Self, NoProbe> {
        let key = service.key(backend);
        let is_agent = |spec: &ProbeSpec| matches!(*spec.kind, ProbeKind::Agent);
        let alone = backend.probes.iter().all(|spec| is_agent(spec));
        let questions = service.probes_of(backend).map(|(policy, spec)| Question {
            name: policy.name.clone(),
            spec: spec.clone(),
            advisory: is_agent(spec) && !alone && only.is_none(),
        });
        let mut questions: Vec<Question> = questions.collect();
        if questions.is_empty() {
            return Err(NoProbe::Unprobed(key));
        }
        if let Some(name) = only {
            let names: Vec<&str> = questions.iter().map(|question| &*question.name).collect();
            let help = match nearest(name, &names) {
                Some(meant) => format!("did you mean {meant:?}?"),
                None => format!("it has {}", names.join(", ")),
            };
            questions.retain(|question| &*question.name == name);
            if questions.is_empty() {
                let name = name.to_owned();
                return Err(NoProbe::Unknown { key, name, help });
            }
        }
        Ok(Self {
            target: key.to_string(),
            questions,
        })
    }

    /// Asks all at once, each with its own deadline.
    pub async fn ask(&self, prober: &Prober) -> Answers<'_> {
        let asked = self
            .questions
            .iter()
            .map(|question| prober.run(&question.spec));
        self.answered(futures::future::join_all(asked).await)
    }

    /// These outcomes, in the order of the probes.
    fn answered(&self, outcomes: Vec<Outcome>) -> Answers<'_> {
        Answers {
            group: self,
            outcomes,
        }
    }
}

impl Answers<'_> {
    fn all(&self) -> impl Iterator<Item = (&Question, &Outcome)> {
        self.group.questions.iter().zip(&self.outcomes)
    }

    /// The outcome that stands for all: of a failure if there is one, else of one that could not be
    /// judged, else the slowest.
    fn deciding(&self) -> Option<(&Question, &Outcome)> {
        let weight = |(question, outcome): &(&Question, &Outcome)| {
            let silent = question.advisory && outcome.agent.is_none();
            let rank = match outcome.verdict {
                Verdict::Failure if !silent => 2,
                Verdict::Internal if !silent => 1,
                Verdict::Failure | Verdict::Internal | Verdict::Success => 0,
            };
            (rank, !silent, outcome.latency)
        };
        // Of equals the first.
        self.all().reduce(|best, other| {
            if weight(&other) > weight(&best) {
                other
            } else {
                best
            }
        })
    }

    /// What the probes say together.
    pub fn verdict(&self) -> Verdict {
        self.deciding()
            .map_or(Verdict::Internal, |(_, outcome)| outcome.verdict)
    }

    /// As `lb probe --json`. The fields of one probe; of several, those of the one that decides,
    /// and each by its name in `probes`.
    pub fn json(&self) -> Value {
        let Some((question, outcome)) = self.deciding() else {
            return Value::Null;
        };
        let mut json = to_json(outcome);
        if self.outcomes.len() > 1 {
            let longest = self.outcomes.iter().map(|outcome| outcome.latency).max();
            let longest = longest.unwrap_or(Duration::ZERO);
            let probes = self.all().map(|(question, outcome)| {
                let mut one = to_json(outcome);
                one["name"] = json!(question.name);
                one
            });
            json["detail"] = json!(format!("{}: {}", question.name, outcome.detail));
            json["latency_ms"] = json!(super::millis(longest));
            json["probes"] = probes.collect();
        }
        json
    }

    /// As `lb probe`.
    pub fn text(&self) -> String {
        let target = &self.group.target;
        let several = self.outcomes.len() > 1;
        let texts = self.all().map(|(question, outcome)| {
            let name = if several {
                format!("{target} {}", question.name)
            } else {
                target.clone()
            };
            to_text(&name, &question.spec, outcome)
        });
        let mut text = texts.collect::<Vec<_>>().join("\n");
        if let (true, Some((question, outcome))) = (several, self.deciding()) {
            let name = &question.name;
            text += &match outcome.verdict {
                Verdict::Success => {
                    "\nTOGETHER: SUCCESS: all probes that count succeed\n".to_owned()
                }
                Verdict::Failure => format!("\nTOGETHER: FAILURE: {name}: {}\n", outcome.detail),
                Verdict::Internal => format!("\nTOGETHER: INTERNAL: {name}: {}\n", outcome.detail),
            };
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::probe::Class;

    fn group(only: Option<&str>) -> Result<Group, NoProbe> {
        let text = "[node]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\n\
             address = \"203.0.113.10:80\"\n\
             [[service.health]]\nprobe = \"http\"\npath = \"/readyz\"\n\
             [[service.health]]\nname = \"database\"\nprobe = \"tcp\"\nport = 5432\n\
             [[service.health]]\nprobe = \"agent\"\nport = 9707\n\
             [[service.backend]]\nname = \"b0\"\naddress = \"10.0.0.1:80\"\n";
        let model = config::parse(text, "lb.toml").unwrap();
        let service = &model.services[0];
        Group::new(service, &service.backends[0], only)
    }

    fn outcome(class: Class, millis: u64) -> Outcome {
        Outcome {
            latency: Duration::from_millis(millis),
            ..Outcome::of(class)
        }
    }

    #[test]
    fn all_must_succeed_and_the_first_failure_stands_for_them() {
        let group = group(None).unwrap();
        let decided = |classes: [Class; 3]| {
            let outcomes = (1..).zip(classes).map(|(n, class)| outcome(class, n));
            let answers = group.answered(outcomes.collect());
            let json = answers.json();
            assert_eq!(json["probes"].as_array().unwrap().len(), 3);
            assert_eq!(json["latency_ms"], 3.0);
            let name = |n: usize| json["probes"][n]["name"].clone();
            assert_eq!([name(0), name(1), name(2)], ["http", "database", "agent"]);
            let text = answers.text();
            assert!(
                text.contains("web/b0 database: tcp probe of 10.0.0.1:5432"),
                "{text}"
            );
            let together = text.lines().last().unwrap().to_owned();
            let outcome = json["outcome"].as_str().unwrap().to_uppercase();
            assert!(
                together.starts_with(&format!("TOGETHER: {outcome}: ")),
                "{text}"
            );
            (
                answers.verdict(),
                json["detail"].as_str().unwrap().to_owned(),
            )
        };
        let said = |verdict, detail: &str| (verdict, detail.to_owned());
        use Class::{Internal, Ok, Refused, Status};
        assert_eq!(decided([Ok, Ok, Ok]).0, Verdict::Success);
        assert_eq!(
            decided([Ok, Status, Ok]),
            said(Verdict::Failure, "database: status")
        );
        assert_eq!(
            decided([Internal, Refused, Ok]),
            said(Verdict::Failure, "database: refused")
        );
        assert_eq!(
            decided([Internal, Ok, Ok]),
            said(Verdict::Internal, "http: internal")
        );
        // An agent beside them that cannot be reached has said nothing.
        assert_eq!(decided([Ok, Ok, Refused]).0, Verdict::Success);
    }

    #[test]
    fn one_is_picked_by_its_name() {
        let picked = group(Some("agent")).unwrap();
        let answers = picked.answered(vec![outcome(Class::Refused, 1)]);
        assert_eq!(answers.verdict(), Verdict::Failure, "asked alone it counts");
        assert_eq!(answers.json(), to_json(&answers.outcomes[0]));
        assert!(!answers.text().contains("TOGETHER"));
        let error = |name| group(Some(name)).err().unwrap().to_string();
        assert_eq!(
            error("htp"),
            "web/b0 has no probe \"htp\"; did you mean \"http\"?"
        );
        assert_eq!(
            error("x"),
            "web/b0 has no probe \"x\"; it has http, database, agent"
        );
    }
}
