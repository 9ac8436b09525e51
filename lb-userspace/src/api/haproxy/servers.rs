//! `show servers state`, `show servers conn` and `show backend`.

use super::server_view::{Server, is_called, servers, services};
use super::{NONE, Refused, check};
use crate::api::status::{ServiceStatus, Status};

/// The columns of `show servers state`, format 1.
const STATE: &str = "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state \
    srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result \
    srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn \
    srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port";

/// The columns of `show servers conn` of a process with one thread.
const CONN: &str = "# bkname/svname bkid/svid addr port - purge_delay used_cur used_max need_est \
    unsafe_nb safe_nb idle_lim idle_cur idle_per_thr[1]";

/// CHK_ST_INPROGRESS, CONFIGURED and ENABLED of HAProxy.
const IN_PROGRESS: u8 = 0x01;
const CONFIGURED: u8 = 0x02;
const ENABLED: u8 = 0x04;

pub fn backends(status: &Status) -> String {
    let mut text = "# name\n".to_owned();
    for service in &status.services {
        text.push_str(&format!("{}\n", service.name));
    }
    text
}

pub fn state(status: &Status, only: Option<&str>) -> Result<String, Refused> {
    let mut text = format!("1\n{STATE}\n");
    for (id, service) in chosen(status, only)? {
        for server in servers(service) {
            text.push_str(&state_of(status, id, &server));
        }
    }
    Ok(text)
}

fn state_of(status: &Status, id: usize, server: &Server<'_>) -> String {
    let Server {
        service,
        backend,
        number,
    } = server;
    let (address, port) = server.address();
    let probed = check::status(backend);
    let seconds = since(status, backend.since);
    let check = probed.unwrap_or(check::INITIAL);
    let probing = match (&backend.probe, backend.next_probe) {
        (None, _) => 0,
        (Some(_), _) if !server.is_probed() => CONFIGURED,
        (Some(_), Some(_)) => CONFIGURED | ENABLED,
        (Some(_), None) => CONFIGURED | ENABLED | IN_PROGRESS,
    };
    format!(
        "{id} {} {number} {} {address} {} {} {} {} {seconds} {} {} {NONE} {probing} 0 0 0 {NONE} \
         {port} {NONE} 0 0 {NONE} {NONE} 0\n",
        service.name,
        backend.name,
        server.operational(),
        server.administrative(),
        backend.weight,
        server.initial_weight(),
        check.number,
        check.result,
    )
}

pub fn conn(status: &Status, only: Option<&str>) -> Result<String, Refused> {
    let mut text = format!("{CONN}\n");
    for (id, service) in chosen(status, only)? {
        for server in servers(service) {
            let (address, port) = server.address();
            let Server {
                backend, number, ..
            } = server;
            // A layer-4 balancer keeps no idle connections to servers, and knows no highest number.
            text.push_str(&format!(
                "{}/{} {id}/{number} {address} {port} - 0 {} {NONE} {NONE} 0 0 0 0 0\n",
                service.name, backend.name, backend.active_flows,
            ));
        }
    }
    Ok(text)
}

/// All services, or the one that is asked for.
fn chosen<'s>(
    status: &'s Status,
    only: Option<&str>,
) -> Result<Vec<(usize, &'s ServiceStatus)>, Refused> {
    let wanted = |(id, service): &(usize, &ServiceStatus)| {
        only.is_none_or(|only| is_called(only, &service.name, *id))
    };
    let found: Vec<_> = services(status).filter(wanted).collect();
    match (found.is_empty(), only) {
        (true, Some(_)) => Err("Can't find backend.".into()),
        _ => Ok(found),
    }
}

/// Whole seconds from then to the status.
pub fn since(status: &Status, then: jiff::Timestamp) -> i64 {
    status.node.at.duration_since(then).as_secs().max(0)
}
