//! A gRPC server over h2: `grpc.health.v1.Health/Check` as ordered, `/lab.Echo/Name`, whose
//! answer's first field is the backend's name, and `/lab.Echo/Stream`, a stream in both directions
//! that begins with the same answer and then echoes. The messages are small enough to write by hand.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::TcpListener;

use super::{State, accept};

/// gRPC status codes (grpc/doc/statuscodes.md).
const OK: &str = "0";
const UNIMPLEMENTED: &str = "12";

/// `HealthCheckResponse { status }`: field 1, a varint (grpc/health/v1/health.proto).
const SERVING: [u8; 2] = [0x08, 1];
const NOT_SERVING: [u8; 2] = [0x08, 2];

/// Serves gRPC with prior knowledge of HTTP/2.
pub async fn serve(listener: TcpListener, state: Arc<State>) {
    accept(listener, move |stream| {
        let state = Arc::clone(&state);
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else {
                return;
            };
            // A connection that breaks is the client's to report.
            while let Some(Ok((request, respond))) = connection.accept().await {
                let state = Arc::clone(&state);
                tokio::spawn(async move { drop(answer(request, respond, &state).await) });
            }
        }
    })
    .await;
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    state: &State,
) -> Result<(), h2::Error> {
    let (parts, mut body) = request.into_parts();
    if parts.uri.path() == "/lab.Echo/Stream" {
        return stream(body, respond, state).await;
    }
    while let Some(chunk) = body.data().await {
        body.flow_control().release_capacity(chunk?.len())?;
    }
    let message = match parts.uri.path() {
        "/grpc.health.v1.Health/Check" if state.serving() => Some(SERVING.to_vec()),
        "/grpc.health.v1.Health/Check" => Some(NOT_SERVING.to_vec()),
        "/lab.Echo/Name" => Some(text_field(&state.name)),
        _ => None,
    };
    let status = if message.is_some() { OK } else { UNIMPLEMENTED };
    let mut stream = respond.send_response(head(), false)?;
    if let Some(message) = message {
        stream.send_data(frame(&message), false)?;
    }
    stream.send_trailers(trailers(status))
}

/// Greets with the name, then sends back what comes until the client closes its half.
async fn stream(
    mut body: RecvStream,
    mut respond: SendResponse<Bytes>,
    state: &State,
) -> Result<(), h2::Error> {
    let mut stream = respond.send_response(head(), false)?;
    stream.send_data(frame(&text_field(&state.name)), false)?;
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        stream.send_data(chunk, false)?;
    }
    stream.send_trailers(trailers(OK))
}

fn head() -> Response<()> {
    let mut head = Response::new(());
    head.headers_mut()
        .insert("content-type", HeaderValue::from_static("application/grpc"));
    head
}

fn trailers(status: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    trailers
}

/// Field 1 of type string, shorter than 128 bytes.
fn text_field(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX).min(127);
    let mut message = vec![0x0a, length];
    message.extend_from_slice(&text.as_bytes()[..usize::from(length)]);
    message
}

/// A gRPC message: uncompressed, with its length.
pub fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or_default());
    frame.put_slice(message);
    frame.freeze()
}
