//! Echo servers. Both name the backend, so that a client sees which one it talks to.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::{State, accept};

/// Greets with `name\n`, then echoes.
pub async fn tcp(listener: TcpListener, state: Arc<State>) {
    accept(listener, move |stream| {
        let state = Arc::clone(&state);
        async move {
            // A connection that breaks is the client's to report.
            drop(converse(stream, &state).await);
        }
    })
    .await;
}

async fn converse(mut stream: TcpStream, state: &State) -> std::io::Result<()> {
    stream
        .write_all(format!("{}\n", state.name).as_bytes())
        .await?;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length]).await?;
    }
}

/// Answers each datagram with `name ` and its bytes.
pub async fn udp(socket: UdpSocket, state: Arc<State>) {
    let mut buffer = vec![0; 64 * 1024];
    let mut answer = Vec::new();
    loop {
        // An ICMP error of an earlier answer surfaces here; the client that left is no concern.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        answer.clear();
        answer.extend_from_slice(state.name.as_bytes());
        answer.push(b' ');
        answer.extend_from_slice(&buffer[..length]);
        if let Err(error) = socket.send_to(&answer, peer).await {
            eprintln!("udp answer to {peer}: {error}");
        }
    }
}
