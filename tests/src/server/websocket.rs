//! A WebSocket server: its first message is the backend's name, then it echoes.

use std::sync::Arc;

use futures::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::{self, Message};

use super::{State, accept};

/// Serves WebSocket (RFC 6455) on any path.
pub async fn serve(listener: TcpListener, state: Arc<State>) {
    accept(listener, move |stream| {
        let state = Arc::clone(&state);
        async move {
            // A connection that breaks is the client's to report.
            drop(converse(stream, &state).await);
        }
    })
    .await;
}

async fn converse(stream: TcpStream, state: &State) -> Result<(), tungstenite::Error> {
    let mut socket = tokio_tungstenite::accept_async(stream).await?;
    socket.send(Message::text(state.name.clone())).await?;
    while let Some(message) = socket.next().await {
        let message = message?;
        if message.is_binary() || message.is_text() {
            socket.send(message).await?;
        }
    }
    Ok(())
}
