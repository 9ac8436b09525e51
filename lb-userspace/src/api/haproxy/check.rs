//! Outcomes of probes in HAProxy's words.

use crate::api::status::BackendStatus;

/// A kind of outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckStatus {
    /// `check_status` of `show stat`.
    pub code: &'static str,
    /// `check_desc` of `show stat`.
    pub description: &'static str,
    /// `srv_check_status` of `show servers state`.
    pub number: u8,
    /// `srv_check_result` there: 0 not known, 2 failed, 3 passed, 4 passed on a condition.
    pub result: u8,
}

const fn of(code: &'static str, description: &'static str, number: u8, result: u8) -> CheckStatus {
    CheckStatus {
        code,
        description,
        number,
        result,
    }
}

/// None yet, or never one.
pub const INITIAL: CheckStatus = of("INI", "Initializing", 1, 0);

/// The layer that a kind of probe asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    Transport,
    Application,
    Command,
}

/// The last outcome of a backend's probe; `None` if it is not probed.
pub fn status(backend: &BackendStatus) -> Option<CheckStatus> {
    let layer = match backend.probe.as_deref()? {
        "tcp" => Layer::Transport,
        "exec" => Layer::Command,
        _ => Layer::Application,
    };
    let Some(last) = &backend.last_probe else {
        return Some(INITIAL);
    };
    Some(match (&*last.class, layer) {
        ("shortage" | "internal", _) => of("SOCKERR", "Socket error", 5, 2),
        ("ok" | "degraded", Layer::Command) => of("PROCOK", "External check passed", 20, 3),
        ("timeout", Layer::Command) => of("PROCTOUT", "External check timeout", 19, 2),
        (_, Layer::Command) => of("PROCERR", "External check error", 18, 2),
        ("ok" | "degraded", Layer::Transport) => of("L4OK", "Layer4 check passed", 6, 3),
        ("ok" | "degraded", Layer::Application) => of("L7OK", "Layer7 check passed", 15, 3),
        ("drain", _) => of("L7OKC", "Layer7 check conditionally passed", 16, 4),
        ("timeout", Layer::Transport) => of("L4TOUT", "Layer4 timeout", 7, 2),
        ("timeout", Layer::Application) => of("L7TOUT", "Layer7 timeout", 12, 2),
        ("refused" | "unreachable" | "reset" | "network", _) => {
            of("L4CON", "Layer4 connection problem", 8, 2)
        }
        ("tls", _) => of("L6RSP", "Layer6 invalid response", 11, 2),
        ("status" | "application" | "starting", _) => of("L7STS", "Layer7 wrong status", 17, 2),
        (_, _) => of("L7RSP", "Layer7 invalid response", 13, 2),
    })
}

/// The HTTP status of the last answer, if it was one.
pub fn code(backend: &BackendStatus) -> Option<u16> {
    let detail = &backend.last_probe.as_ref()?.detail;
    let digits = detail.strip_prefix("HTTP ")?.get(..3)?;
    digits.parse().ok()
}
