//! The HTTP server: `/` names the backend, `/readyz` answers as ordered, `/slow` after a second,
//! `/download?bytes=N[&rate=BYTES_PER_SECOND]` streams the pattern.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::time::{Instant, Sleep};

use super::{Order, State, accept};
use crate::pattern;

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Serves HTTP/1.1 with keep-alive.
pub async fn serve(listener: TcpListener, state: Arc<State>) {
    accept(listener, move |stream| {
        let state = Arc::clone(&state);
        async move {
            let answer = service_fn(move |request| {
                let state = Arc::clone(&state);
                async move { Ok::<_, Infallible>(answer(&request, &state).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer);
            // A connection that breaks is the client's to report.
            drop(connection.await);
        }
    })
    .await;
}

async fn answer(request: &Request<Incoming>, state: &State) -> Answer {
    match request.uri().path() {
        "/" if state.fails() => text(StatusCode::INTERNAL_SERVER_ERROR, &state.name),
        "/" => text(StatusCode::OK, &state.name),
        "/slow" => {
            tokio::time::sleep(Duration::from_secs(1)).await;
            text(StatusCode::OK, &state.name)
        }
        "/readyz" => {
            if state.is(Order::Hang) {
                std::future::pending::<()>().await;
            }
            if state.is(Order::Leaving) {
                return text(StatusCode::NOT_FOUND, "leaving");
            }
            match (state.is(Order::Ready), state.is(Order::Degraded)) {
                (true, _) => text(StatusCode::OK, "ok"),
                (false, true) => {
                    let mut answer = text(StatusCode::OK, "ok");
                    let header = ("x-lb-degraded", HeaderValue::from_static("no cache"));
                    answer.headers_mut().insert(header.0, header.1);
                    answer
                }
                (false, false) => text(StatusCode::SERVICE_UNAVAILABLE, "not ready"),
            }
        }
        "/download" => {
            let Some(length) = number(request, "bytes") else {
                return text(StatusCode::BAD_REQUEST, "bytes=N is missing");
            };
            let body = Download::new(length, number(request, "rate"));
            let mut answer = Response::new(body.boxed());
            if let Ok(name) = state.name.parse() {
                answer.headers_mut().insert("x-backend", name);
            }
            answer
        }
        _ => text(StatusCode::NOT_FOUND, "not found"),
    }
}

fn text(status: StatusCode, body: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body.to_owned())).boxed());
    *answer.status_mut() = status;
    answer
}

fn number(request: &Request<Incoming>, name: &str) -> Option<u64> {
    let pairs = request
        .uri()
        .query()?
        .split('&')
        .filter_map(|pair| pair.split_once('='));
    let value = pairs.into_iter().find(|(key, _)| *key == name)?.1;
    value.parse().ok()
}

/// The pattern, at a rate if one is given.
struct Download {
    sent: u64,
    length: u64,
    rate: Option<u64>,
    start: Instant,
    sleep: Pin<Box<Sleep>>,
}

/// With a rate, bytes go out in steps of this time.
const STEP: Duration = Duration::from_millis(50);

impl Download {
    fn new(length: u64, rate: Option<u64>) -> Self {
        let start = Instant::now();
        Self {
            sent: 0,
            length,
            rate,
            start,
            sleep: Box::pin(tokio::time::sleep_until(start)),
        }
    }

    /// How many bytes may have gone out by now.
    fn allowed(&self) -> u64 {
        let Some(rate) = self.rate else {
            return self.length;
        };
        let time = (self.start.elapsed() + STEP).as_millis();
        let bytes = u128::from(rate) * time / 1000;
        u64::try_from(bytes).unwrap_or(u64::MAX).min(self.length)
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.sent == self.length {
            return Poll::Ready(None);
        }
        loop {
            let allowed = self.allowed();
            if allowed > self.sent {
                let bytes = pattern::chunk(self.sent, allowed - self.sent);
                self.sent += bytes.len() as u64;
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            self.sleep.as_mut().reset(Instant::now() + STEP);
            ready!(self.sleep.as_mut().poll(context));
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length - self.sent)
    }
}
