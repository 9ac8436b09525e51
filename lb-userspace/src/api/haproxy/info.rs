//! `show info`.

use crate::api::status::Status;

/// The lines that lb has values for, in HAProxy's order. The name is HAProxy's: libraries take the
/// socket for another program's otherwise. The description says whose it is.
pub fn lines(status: &Status) -> String {
    let node = &status.node;
    let uptime = node.uptime_seconds as u64;
    let (days, hours, minutes, seconds) = (
        uptime / 86_400,
        uptime / 3600 % 24,
        uptime / 60 % 60,
        uptime % 60,
    );
    let backends = status.services.iter().flat_map(|service| &service.backends);
    let opened: u64 = backends.map(|backend| backend.new_flows).sum();
    let started = node.at.as_second() - uptime.cast_signed();
    format!(
        "Name: HAProxy\n\
         Version: {}\n\
         Nbproc: 1\n\
         Process_num: 1\n\
         Pid: {}\n\
         Uptime: {days}d {hours}h{minutes:02}m{seconds:02}s\n\
         Uptime_sec: {uptime}\n\
         Maxconn: {}\n\
         CurrConns: {}\n\
         CumConns: {opened}\n\
         description: lb {}\n\
         Stopping: {}\n\
         Start_time_sec: {started}\n",
        node.version,
        node.pid,
        node.flows.capacity,
        node.flows.used,
        node.version,
        u8::from(node.draining),
    )
}
