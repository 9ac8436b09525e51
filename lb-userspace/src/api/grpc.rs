//! `node.grpc`: the agent's own health by `grpc.health.v1.Health`, over HTTP/2 with prior knowledge.
//!
//! Like the HTTP endpoints it answers from the last published status, so that asking costs the
//! agent's loop nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::debug;

use super::http::accept;
use super::status::{BackendStatus, ServiceStatus, Status};
use super::token::{Wanted, allows};
use crate::probe::grpc_health::{
    self as message, HealthCheckRequest, HealthCheckResponse, HealthListResponse, MAX_ANSWER,
    NOT_SERVING, SERVICE_UNKNOWN, SERVING,
};

const KEY: &str = "node.grpc";
/// Calls on one connection at a time.
const CALLS: u32 = 64;
/// For the first byte of a connection, and for a request's message.
const PATIENCE: Duration = Duration::from_secs(5);
/// A peer that has vanished is noticed by pings that it does not answer.
const PING: Duration = Duration::from_secs(30);
const PING_PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of a request's headers.
const MAX_HEADERS: u32 = 16 << 10;

/// gRPC status codes (grpc/doc/statuscodes.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Ok = 0,
    InvalidArgument = 3,
    NotFound = 5,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Unavailable = 14,
    Unauthenticated = 16,
}

/// A call that ends without an answer.
type Failed = (Code, &'static str);

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Serves the calls until it is dropped. `List` tells all names, so it is for those who have the
/// token, if there is one.
pub async fn serve(listener: TcpListener, snapshot: watch::Receiver<Arc<Status>>, wanted: Wanted) {
    accept(KEY, listener, |stream| {
        connection(stream, snapshot.clone(), wanted.clone())
    })
    .await;
}

async fn connection(stream: TcpStream, snapshot: watch::Receiver<Arc<Status>>, wanted: Wanted) {
    match timeout(PATIENCE, stream.readable()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return debug!("{KEY}: {error}"),
        Err(_) => return,
    }
    let service = service_fn(|request: Request<Incoming>| {
        let allowed = allows(&wanted, request.headers());
        let snapshot = snapshot.clone();
        async move { Ok::<_, Infallible>(respond(request, snapshot, allowed).await) }
    });
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING_PATIENCE)
        .max_concurrent_streams(CALLS)
        .max_header_list_size(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!("{KEY}: {error}");
    }
}

/// Whether a service is serving: the node is ready, and a backend takes new flows. The empty name is
/// the node itself. `None`: there is no such service.
pub fn serving(status: &Status, service: &str) -> Option<bool> {
    let ready = status.node.ready();
    if service.is_empty() {
        return Some(ready);
    }
    let mut services = status.services.iter();
    let found = services.find(|known| known.name == service)?;
    Some(ready && takes_flows(found))
}

/// Whether a new flow of this service finds a backend.
fn takes_flows(service: &ServiceStatus) -> bool {
    let mut backends = service.backends.iter();
    backends.any(BackendStatus::takes_new_flows)
}

async fn respond(
    request: Request<Incoming>,
    snapshot: watch::Receiver<Arc<Status>>,
    allowed: bool,
) -> Response<Body> {
    let of_grpc = request.headers().get(CONTENT_TYPE);
    let of_grpc = of_grpc.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if request.method() != Method::POST || !of_grpc {
        let mut response = Response::new(Empty::new().boxed_unsync());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return response;
    }
    let (head, body) = request.into_parts();
    let answer = match head.uri.path() {
        "/grpc.health.v1.Health/Check" => check(body, &snapshot).await,
        "/grpc.health.v1.Health/Watch" => watch(body, snapshot).await,
        "/grpc.health.v1.Health/List" if allowed => Ok(list(&snapshot.borrow())),
        "/grpc.health.v1.Health/List" => Err((
            Code::Unauthenticated,
            "this needs the token of node.http_token_file",
        )),
        _ => Err((
            Code::Unimplemented,
            "there are Check, Watch and List of grpc.health.v1.Health",
        )),
    };
    let mut response = match answer {
        Ok(body) => Response::new(body),
        // The trailers are all there is, and so they are headers, and end the stream: a client takes
        // an empty frame after them for a fault.
        Err(failed) => {
            let mut response = Response::new(Empty::new().boxed_unsync());
            *response.headers_mut() = trailers(failed);
            response
        }
    };
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

async fn check(body: Incoming, snapshot: &watch::Receiver<Arc<Status>>) -> Result<Body, Failed> {
    let asked = read(body).await?;
    match serving(&snapshot.borrow(), &asked.service) {
        Some(serving) => Ok(unary(&state(Some(serving)))),
        None => Err((Code::NotFound, "no service of that name is configured")),
    }
}

/// Sends the state at once and whenever it changes. An unknown service may come with a reload.
async fn watch(body: Incoming, snapshot: watch::Receiver<Arc<Status>>) -> Result<Body, Failed> {
    let asked = read(body).await?;
    let watching = (snapshot, None);
    let changes = stream::unfold(watching, move |(mut snapshot, told)| {
        let service = asked.service.clone();
        async move {
            loop {
                let now = state(serving(&snapshot.borrow_and_update(), &service));
                if told != Some(now.status) {
                    return Some((message::encode(&now), (snapshot, Some(now.status))));
                }
                snapshot.changed().await.ok()?;
            }
        }
    });
    let end =
        stream::once(async { Frame::trailers(trailers((Code::Unavailable, "the agent ends"))) });
    let frames = changes
        .map(|message| Frame::data(Bytes::from(message)))
        .chain(end);
    Ok(StreamBody::new(frames.map(Ok)).boxed_unsync())
}

fn list(status: &Status) -> Body {
    let names = status.services.iter().map(|service| service.name.as_str());
    let statuses: BTreeMap<_, _> = std::iter::once("")
        .chain(names)
        .map(|name| (name.to_owned(), state(serving(status, name))))
        .collect();
    unary(&HealthListResponse { statuses })
}

const fn state(serving: Option<bool>) -> HealthCheckResponse {
    HealthCheckResponse {
        status: match serving {
            Some(true) => SERVING,
            Some(false) => NOT_SERVING,
            None => SERVICE_UNKNOWN,
        },
    }
}

/// Reads the one message of a request.
async fn read(body: Incoming) -> Result<HealthCheckRequest, Failed> {
    let whole = timeout(PATIENCE, Limited::new(body, MAX_ANSWER).collect()).await;
    let whole = whole
        .map_err(|_| (Code::InvalidArgument, "the request did not come in time"))?
        .map_err(|_| {
            (
                Code::ResourceExhausted,
                "the request is too long or broken off",
            )
        })?;
    message::decode(&whole.to_bytes()).map_err(|error| match error {
        message::MessageError::Compressed => (Code::Unimplemented, "no compression is supported"),
        _ => (
            Code::InvalidArgument,
            "the request is not one HealthCheckRequest",
        ),
    })
}

/// One message, and that all is well.
fn unary(message: &impl prost::Message) -> Body {
    let data = Frame::data(Bytes::from(message::encode(message)));
    let frames = [data, Frame::trailers(trailers((Code::Ok, "")))];
    StreamBody::new(stream::iter(frames.map(Ok))).boxed_unsync()
}

fn trailers((code, message): Failed) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(code as u16));
    if !message.is_empty() {
        trailers.insert("grpc-message", HeaderValue::from_static(message));
    }
    trailers
}

#[cfg(test)]
#[path = "grpc_tests.rs"]
mod tests;
