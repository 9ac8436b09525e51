//! `show stat`: a table in CSV (management guide, section 9.1).

use super::server_view::{Server, State, is_called, servers, services};
use super::servers::since;
use super::{Refused, check};
use crate::api::status::{ServiceStatus, Status};

/// The columns that HAProxy 2.6 promises, and the `-` that ends them.
const COLUMNS: &str = "pxname,svname,qcur,qmax,scur,smax,slim,stot,bin,bout,dreq,dresp,ereq,econ,eresp,wretr,\
    wredis,status,weight,act,bck,chkfail,chkdown,lastchg,downtime,qlimit,pid,iid,sid,throttle,\
    lbtot,tracked,type,rate,rate_lim,rate_max,check_status,check_code,check_duration,hrsp_1xx,\
    hrsp_2xx,hrsp_3xx,hrsp_4xx,hrsp_5xx,hrsp_other,hanafail,req_rate,req_rate_max,req_tot,\
    cli_abrt,srv_abrt,comp_in,comp_out,comp_byp,comp_rsp,lastsess,last_chk,last_agt,qtime,ctime,\
    rtime,ttime,agent_status,agent_code,agent_duration,check_desc,agent_desc,check_rise,\
    check_fall,check_health,agent_rise,agent_fall,agent_health,addr,cookie,mode,algo,conn_rate,\
    conn_rate_max,conn_tot,intercepted,dcon,dses,wrew,connect,reuse,cache_lookups,cache_hits,\
    srv_icur,src_ilim,qtime_max,ctime_max,rtime_max,ttime_max,eint,idle_conn_cur,safe_conn_cur,\
    used_conn_cur,need_conn_est,uweight,agg_server_status,agg_server_check_status,\
    agg_check_status,-";

/// Sorts of line, as bits.
const FRONTEND: i64 = 1;
const BACKEND: i64 = 2;
const SERVER: i64 = 4;

/// Which lines are wanted.
pub struct Filter {
    /// Name or number of the service, sorts of line, and number of the server; -1: all.
    proxy: String,
    sorts: i64,
    server: i64,
    /// Only servers that are not in maintenance.
    no_maint: bool,
    /// Only servers that are up.
    up: bool,
}

impl Filter {
    /// `[<proxy> <type> <sid>] [no-maint] [up]`; what HAProxy ignores is ignored.
    pub fn new(words: &[String]) -> Result<Self, Refused> {
        if words
            .iter()
            .any(|word| matches!(&**word, "typed" | "json" | "desc"))
        {
            return Err("'show stat' is answered in CSV only.".into());
        }
        let number = |text: &String| text.parse().unwrap_or(0);
        let has = |wanted| words.iter().any(|word| word == wanted);
        let (proxy, sorts, server) = match words {
            [proxy, sorts, server, ..] => (proxy.clone(), number(sorts), number(server)),
            _ => ("-1".to_owned(), -1, -1),
        };
        Ok(Self {
            proxy,
            sorts,
            server,
            no_maint: has("no-maint"),
            up: has("up"),
        })
    }

    fn wants_service(&self, id: usize, service: &ServiceStatus) -> bool {
        let number = format!("#{}", self.proxy);
        self.proxy == "-1"
            || is_called(&self.proxy, &service.name, id)
            || is_called(&number, &service.name, id)
    }

    fn wants_server(&self, server: &Server<'_>) -> bool {
        let state = server.state();
        self.sorts & SERVER != 0
            && (self.server == -1 || usize::try_from(self.server) == Ok(server.number))
            && !(self.no_maint && state == State::Maint)
            && !(self.up && matches!(state, State::Maint | State::Down))
    }
}

pub fn table(status: &Status, filter: &Filter) -> Result<String, Refused> {
    let mut text = format!("# {COLUMNS},\n");
    for (id, service) in services(status) {
        if !filter.wants_service(id, service) {
            continue;
        }
        let all = Whole {
            status,
            service,
            id,
        };
        if filter.sorts & FRONTEND != 0 {
            line(&mut text, |column| all.frontend(column));
        }
        for server in servers(service).filter(|server| filter.wants_server(server)) {
            line(&mut text, |column| {
                server_column(status, id, &server, column)
            });
        }
        if filter.sorts & BACKEND != 0 {
            line(&mut text, |column| all.backend(column));
        }
    }
    Ok(text)
}

/// Writes a line; a column that lb has no value for is empty.
fn line(text: &mut String, value: impl Fn(&str) -> Option<String>) {
    for column in COLUMNS.split(',') {
        let value = match column {
            "-" => "-".to_owned(),
            "pid" => "1".to_owned(),
            "mode" => "tcp".to_owned(),
            column => value(column).unwrap_or_default(),
        };
        if value.contains(['"', ',', '\n']) {
            text.push_str(&format!("\"{}\"", value.replace('"', "\"\"")));
        } else {
            text.push_str(&value);
        }
        text.push(',');
    }
    text.push('\n');
}

/// A service as a frontend and a backend.
struct Whole<'s> {
    status: &'s Status,
    service: &'s ServiceStatus,
    id: usize,
}

impl Whole<'_> {
    fn sum(&self, value: impl Fn(&Server<'_>) -> u64) -> String {
        let sum: u64 = servers(self.service).map(|server| value(&server)).sum();
        sum.to_string()
    }

    /// What both lines have.
    fn common(&self, column: &str) -> Option<String> {
        Some(match column {
            "pxname" => self.service.name.clone(),
            "scur" => self.sum(|server| server.backend.active_flows),
            "stot" => self.sum(|server| server.backend.new_flows),
            "bin" => self.sum(|server| server.backend.bytes),
            "iid" => self.id.to_string(),
            "sid" => "0".to_owned(),
            _ => return None,
        })
    }

    fn frontend(&self, column: &str) -> Option<String> {
        Some(match column {
            "svname" => "FRONTEND".to_owned(),
            "status" => "OPEN".to_owned(),
            "type" => "0".to_owned(),
            "conn_tot" => self.sum(|server| server.backend.new_flows),
            column => return self.common(column),
        })
    }

    fn backend(&self, column: &str) -> Option<String> {
        let usable = |backup: bool| {
            let counts = |server: &Server<'_>| server.is_usable() && server.is_backup() == backup;
            self.sum(|server| u64::from(counts(server)))
        };
        let up = servers(self.service).any(|server| server.is_usable());
        let usable_weight = |server: &Server<'_>| match server.is_usable() {
            true => effective(server),
            false => 0,
        };
        Some(match column {
            "svname" => "BACKEND".to_owned(),
            "status" => (if up { "UP" } else { "DOWN" }).to_owned(),
            "weight" => self.sum(usable_weight),
            "uweight" => self.sum(|server| match server.is_usable() {
                true => server.backend.weight.into(),
                false => 0,
            }),
            "act" => usable(false),
            "bck" => usable(true),
            "lastchg" => {
                let times = servers(self.service).map(|server| server.backend.since);
                since(self.status, times.max()?).to_string()
            }
            "lbtot" => self.sum(|server| server.backend.new_flows),
            "type" => "1".to_owned(),
            "econ" => self.sum(|server| server.backend.signs.refused),
            column => return self.common(column),
        })
    }
}

/// The weight in force, with what a slow start or the server itself takes off it.
fn effective(server: &Server<'_>) -> u64 {
    let backend = server.backend;
    u64::from(backend.weight) * u64::from(backend.share) / 100
}

/// Columns that are empty while nobody probes the server.
const CHECKS: [&str; 7] = [
    "chkfail",
    "chkdown",
    "check_status",
    "check_desc",
    "check_code",
    "check_duration",
    "last_chk",
];

fn server_column(status: &Status, id: usize, server: &Server<'_>, column: &str) -> Option<String> {
    let Server {
        service,
        backend,
        number,
    } = server;
    let last = backend.last_probe.as_ref();
    let of_checks = CHECKS.contains(&column);
    if of_checks && !server.is_probed() {
        return None;
    }
    Some(match column {
        "pxname" => service.name.clone(),
        "svname" => backend.name.to_string(),
        "scur" => backend.active_flows.to_string(),
        "stot" | "lbtot" => backend.new_flows.to_string(),
        "bin" => backend.bytes.to_string(),
        "econ" => backend.signs.refused.to_string(),
        "status" => match server.state() {
            State::Up => "UP",
            State::NoCheck => "no check",
            State::NoLb => "NOLB",
            State::Drain => "DRAIN",
            State::Down => "DOWN",
            State::Maint => "MAINT",
        }
        .to_owned(),
        "weight" => effective(server).to_string(),
        "uweight" => backend.weight.to_string(),
        "act" => u8::from(!server.is_backup()).to_string(),
        "bck" => u8::from(server.is_backup()).to_string(),
        "chkfail" => backend.probes.failure.to_string(),
        "chkdown" => server.downs().to_string(),
        "lastchg" => since(status, backend.since).to_string(),
        "iid" => id.to_string(),
        "sid" => number.to_string(),
        "throttle" if server.operational() == 1 => backend.share.to_string(),
        "type" => "2".to_owned(),
        "check_status" => check::status(backend)?.code.to_owned(),
        "check_desc" => check::status(backend)?.description.to_owned(),
        "check_code" => check::code(backend)?.to_string(),
        "check_duration" => last.map(|last| last.latency_ms.round() as u64)?.to_string(),
        "last_chk" => last?.detail.to_string(),
        "addr" => backend.address.clone(),
        _ => return None,
    })
}
