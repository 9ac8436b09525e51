//! `lb doctor`: what on this host keeps lb from working or makes it slow, each with its mend.
//!
//! [`facts`] looks at the host; [`checks`] judges what it saw and touches nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;

use super::Failure;
use super::output::{self, Palette, tame};
use crate::api::DEFAULT_SOCKET;
use crate::config;
use crate::model::{Forwarding, Service};
use crate::neighbor::Problem;

mod announce;
mod capabilities;
mod checks;
mod drivers;
mod ethtool;
mod facts;
mod links;
mod probing;
mod via;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    /// It works, but slower or less safely than it could.
    Warn,
    /// It does not work.
    Fail,
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// Name of the check, stable.
    check: &'static str,
    /// Interface it is about, if one.
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<String>,
    level: Level,
    /// What was found.
    what: String,
    /// What follows from it; empty if all is well.
    #[serde(skip_serializing_if = "str::is_empty")]
    why: &'static str,
    /// What to do, a command where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    /// Whether nothing keeps lb from working.
    ok: bool,
    checks: &'a [Finding],
}

/// Runs the command.
pub(super) fn run(config: Option<&Path>, json: bool) -> Result<u8, Failure> {
    let model = config
        .map(|path| config::load(path).map(|loaded| loaded.model))
        .transpose()?;
    let node = model.as_ref().map(|model| &model.node);
    let mut facts = facts::gather(
        Path::new("/"),
        node.map(|node| node.interfaces.as_slice()),
        node.map_or(Path::new(DEFAULT_SOCKET), |node| &node.control_socket),
    )?;
    if let Some(model) = &model {
        facts.probing = probing::look(probing::Wants::of(model))?;
        let ways = |of: &dyn Fn(&Service) -> bool| -> BTreeSet<IpAddr> {
            let services = model.services.iter().filter(|service| of(service));
            let backends = services.flat_map(|service| &service.backends);
            backends.map(|backend| backend.address.ip()).collect()
        };
        facts.unreachable = facts::unreachable(&ways(&|_| true))?;
        // Of the other modes a backend may be this host.
        let by_nat = ways(&|service| service.forwarding == Forwarding::Nat);
        facts
            .unreachable
            .retain(|address, problem| *problem != Problem::Local || by_nat.contains(address));
    }
    let mut findings = checks::judge(&facts, node);
    findings.extend(checks::tunnel_mtu(&facts, model.as_ref()));
    let probed = model.as_ref().map(via::probed).unwrap_or_default();
    if !probed.is_empty() {
        let means = via::gather(&probed)?;
        findings.extend(via::judge(&facts, &probed, &means));
    }
    findings.extend(model.as_ref().map(announce::look).transpose()?.flatten());
    let ok = findings.iter().all(|finding| finding.level < Level::Fail);
    if json {
        output::print_json(&Report {
            ok,
            checks: &findings,
        })?;
    } else {
        output::print(&render(&findings, Palette::of_stdout()))?;
    }
    Ok(u8::from(!ok))
}

fn render(findings: &[Finding], palette: Palette) -> String {
    let mut text = String::new();
    for finding in findings {
        let level = match finding.level {
            Level::Ok => palette.good("ok  "),
            Level::Warn => palette.soft("warn"),
            Level::Fail => palette.bad("FAIL"),
        };
        let about = match &finding.interface {
            Some(interface) => format!("{}: ", tame(interface)),
            None => String::new(),
        };
        text.push_str(&format!("{level}  {about}{}\n", tame(&finding.what)));
        if finding.level > Level::Ok {
            text.push_str(&format!("        {}\n", finding.why));
        }
        if let Some(mend) = &finding.mend {
            text.push_str(&format!("        mend: {}\n", tame(mend)));
        }
    }
    let count = |level| {
        findings
            .iter()
            .filter(|finding| finding.level == level)
            .count()
    };
    text.push_str(&format!(
        "\n{} ok, {} to look at, {} that keep lb from working\n",
        count(Level::Ok),
        count(Level::Warn),
        count(Level::Fail)
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_reads_what_why_and_mend() {
        let findings = [
            Finding {
                check: "kernel",
                interface: None,
                level: Level::Ok,
                what: "Linux 6.1.0".into(),
                why: "",
                mend: None,
            },
            Finding {
                check: "lro",
                interface: Some("eth0".into()),
                level: Level::Fail,
                what: "LRO is on".into(),
                why: "It merges packets.",
                mend: Some("ethtool -K eth0 lro off".into()),
            },
        ];
        assert_eq!(
            render(&findings, Palette::PLAIN),
            "ok    Linux 6.1.0\n\
             FAIL  eth0: LRO is on\n        It merges packets.\n        \
             mend: ethtool -K eth0 lro off\n\n\
             1 ok, 0 to look at, 1 that keep lb from working\n"
        );
        let json = serde_json::to_value(&findings[1]).unwrap();
        assert_eq!(json["level"], "fail");
        assert_eq!(json["mend"], "ethtool -K eth0 lro off");
    }
}
