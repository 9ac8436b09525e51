//! The half-open TCP probe: SYN, SYN-ACK, RST.
//!
//! As HAProxy does it, with the kernel's own socket: while TCP_QUICKACK is off, the kernel delays
//! the ACK that completes the handshake (`tcp_rcv_synsent_state_process` in net/ipv4/tcp_input.c,
//! by 40 ms or more), and closing with SO_LINGER 0 before that sends RST in its place. The backend's
//! kernel then drops the half-open connection and the application never sees it. A prober that is
//! late by more than the delay sends ACK and RST, as the plain TCP probe does.

use socket2::SockRef;
use tokio::net::TcpSocket;

use super::dial::Dialer;
use super::trace::Trace;
use super::{Answer, Success};
use crate::model::ProbeSpec;

/// Probes.
pub async fn ask(dialer: &Dialer, spec: &ProbeSpec, trace: &mut Trace) -> Answer {
    drop(dialer.connect_with(spec, trace, delay_ack).await?);
    trace.step("reset", "RST instead of the ACK");
    Ok(Success("SYN answered".to_owned()))
}

fn delay_ack(socket: &TcpSocket) -> std::io::Result<()> {
    SockRef::from(socket).set_tcp_quickack(false)
}
