//! The agent's own endpoints on `node.http`: `/livez`, `/startupz`, `/readyz`, `/healthz`,
//! `/metrics` and the status page, all from the last published status, so that asking costs the
//! agent's loop nothing.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::status::Status;
use super::token::{Wanted, allows};
use super::{metrics, page};

/// Connections served at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 128;
/// For a request's headers to come.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);
/// For a connection as a whole: a slow reader gives its place back. One that is used over and over
/// is told to come again.
const CONNECTION_LIFE: Duration = Duration::from_secs(30);

/// The endpoints' address cannot be had.
#[derive(Debug, Error)]
#[error("{key} {address}: {source}; choose another address, or leave {key} out")]
pub struct HttpError {
    key: &'static str,
    address: SocketAddr,
    source: io::Error,
}

/// Takes the address that `key` of the configuration names.
///
/// # Errors
/// [`HttpError`]: the kernel does not give it.
pub async fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener, HttpError> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|source| HttpError {
        key,
        address,
        source,
    })
}

/// Serves the endpoints until it is dropped. A detailed answer (`/`, `/metrics`, `/healthz?verbose`)
/// is for those who have the token, if there is one.
pub async fn serve(listener: TcpListener, snapshot: watch::Receiver<Arc<Status>>, wanted: Wanted) {
    serve_for(CONNECTION_LIFE, listener, snapshot, wanted).await;
}

/// Serves each connection for `life`, and a sixth of that for the answer that is on its way then.
async fn serve_for(
    life: Duration,
    listener: TcpListener,
    snapshot: watch::Receiver<Arc<Status>>,
    wanted: Wanted,
) {
    accept("node.http", listener, |stream| {
        let (snapshot, wanted) = (snapshot.clone(), wanted.clone());
        async move {
            let service = service_fn(|request: Request<Incoming>| {
                let status = snapshot.borrow().clone();
                let allowed = allows(&wanted, request.headers());
                async move {
                    let (method, uri) = (request.method(), request.uri());
                    Ok::<_, Infallible>(respond(method, uri, allowed, &status))
                }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_PATIENCE)
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = pin!(connection);
            let result = match timeout(life, connection.as_mut()).await {
                Ok(result) => result,
                Err(_) => {
                    connection.as_mut().graceful_shutdown();
                    timeout(life / 6, connection).await.unwrap_or(Ok(()))
                }
            };
            if let Err(error) = result {
                debug!("node.http: {error}");
            }
        }
    })
    .await;
}

/// Accepts connections until it is dropped, each served by a task of its own, [`CONNECTIONS`] at a
/// time.
pub(super) async fn accept<F>(
    key: &'static str,
    listener: TcpListener,
    serve: impl Fn(TcpStream) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!("{key}: accepting a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let served = serve(stream);
        tokio::spawn(async move {
            let _place = place;
            served.await;
        });
    }
}

/// The answer to one request, of one who may have details or not.
pub fn respond(
    method: &Method,
    uri: &http::Uri,
    allowed: bool,
    status: &Status,
) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        let allow = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allow);
        return response;
    }
    let node = &status.node;
    let verbose = uri.query().is_some_and(|query| query == "verbose");
    let detailed = match uri.path() {
        "/metrics" | "/" => true,
        "/healthz" => verbose,
        _ => false,
    };
    if detailed && !allowed {
        let mut response = text(
            StatusCode::UNAUTHORIZED,
            "this needs \"Authorization: Bearer TOKEN\" with the token of node.http_token_file\n",
        );
        let scheme = HeaderValue::from_static("Bearer");
        response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
        return response;
    }
    match uri.path() {
        // That this answers is all there is to say: a liveness check must not look further, or a
        // dependency's failure becomes a restart.
        "/livez" => text(StatusCode::OK, "ok\n"),
        "/startupz" => check(node.started(), "starting\n"),
        "/readyz" => check(node.ready(), "not ready\n"),
        "/healthz" => healthz(status, verbose),
        "/metrics" => answer(
            StatusCode::OK,
            metrics::CONTENT_TYPE,
            metrics::encode(status),
        ),
        "/" => answer(
            StatusCode::OK,
            "text/html; charset=utf-8",
            page::render(status),
        ),
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /livez /startupz /readyz /healthz /metrics and /\n",
        ),
    }
}

fn check(good: bool, otherwise: &'static str) -> Response<Full<Bytes>> {
    if good {
        text(StatusCode::OK, "ok\n")
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, otherwise)
    }
}

fn healthz(status: &Status, verbose: bool) -> Response<Full<Bytes>> {
    let node = &status.node;
    let mut body = json!({
        // Packets are forwarded as before, so an overloaded prober fails no readiness check.
        "status": match (node.ready(), node.prober.overloaded) {
            (true, false) => "ok",
            (true, true) => "degraded",
            (false, _) => "unavailable",
        },
        "version": node.version,
        "uptime_seconds": node.uptime_seconds,
        "checks": {
            "attached": node.attached,
            "first_round_done": node.first_round_done,
            "tables_written": node.datapath_error.is_none(),
            "not_draining": !node.draining,
            "prober_keeps_up": !node.prober.overloaded,
        },
    });
    if verbose {
        body["verdict_age_seconds"] = json!(node.verdict_age_seconds);
        body["interfaces"] = json!(node.interfaces);
        body["datapath_error"] = json!(node.datapath_error);
        body["reload_error"] = json!(node.reload_error);
        body["state_error"] = json!(node.state_error);
        let panics = status.services.iter().filter(|service| service.panic);
        let panics: Vec<&str> = panics.map(|service| service.name.as_str()).collect();
        body["services_in_panic"] = json!(panics);
    }
    let code = if node.ready() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    answer(code, "application/json", format!("{body}\n"))
}

fn text(code: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    answer(code, "text/plain; charset=utf-8", body)
}

fn answer(
    code: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::status::tests::sample;
    use super::*;

    async fn get(path: &str, status: &Status) -> (u16, String) {
        let response = respond(&Method::GET, &path.parse().unwrap(), true, status);
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn each_endpoint_follows_its_own_condition() {
        let ready = sample();
        let mut starting = sample();
        starting.node.first_round_done = false;
        let mut detached = sample();
        detached.node.attached = false;
        let mut stuck = sample();
        stuck.node.datapath_error = Some("EPERM".into());
        let mut ending = sample();
        ending.node.draining = true;
        // status, /livez, /startupz, /readyz, /healthz
        for (name, status, wanted) in [
            ("ready", &ready, [200, 200, 200, 200]),
            ("starting", &starting, [200, 503, 503, 503]),
            ("detached", &detached, [200, 503, 503, 503]),
            ("stuck", &stuck, [200, 200, 503, 503]),
            ("ending", &ending, [200, 200, 503, 503]),
        ] {
            for (path, code) in ["/livez", "/startupz", "/readyz", "/healthz"]
                .iter()
                .zip(wanted)
            {
                assert_eq!(get(path, status).await.0, code, "{name} {path}");
            }
        }
    }

    #[tokio::test]
    async fn healthz_names_what_is_wrong() {
        let mut status = sample();
        status.node.datapath_error = Some("EPERM".into());
        let body: serde_json::Value =
            serde_json::from_str(&get("/healthz", &status).await.1).unwrap();
        assert_eq!(body["status"], "unavailable");
        assert_eq!(body["checks"]["tables_written"], false);
        assert_eq!(body["uptime_seconds"], 100.0);
        assert!(
            body.get("datapath_error").is_none(),
            "a detail for ?verbose only"
        );
        let body = get("/healthz?verbose", &status).await.1;
        assert!(body.contains("EPERM"));
    }

    #[tokio::test]
    async fn an_overloaded_prober_is_told_and_no_reason_to_send_packets_elsewhere() {
        let mut status = sample();
        status.node.prober.overloaded = true;
        assert_eq!(get("/readyz", &status).await.0, 200);
        let (code, body) = get("/healthz", &status).await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(code, 200);
        assert_eq!(body["status"], "degraded");
        assert_eq!(body["checks"]["prober_keeps_up"], false);
        assert!(
            get("/metrics", &status)
                .await
                .1
                .contains("\nlb_prober_overloaded 1\n")
        );
    }

    #[test]
    fn details_are_for_those_who_have_the_token() {
        let status = sample();
        for (path, open) in [
            ("/livez", true),
            ("/readyz", true),
            ("/startupz", true),
            ("/healthz", true),
            ("/nothing", true),
            ("/healthz?verbose", false),
            ("/metrics", false),
            ("/", false),
        ] {
            let response = respond(&Method::GET, &path.parse().unwrap(), false, &status);
            assert_eq!(response.status() != 401, open, "{path}");
            assert_eq!(response.headers().contains_key(WWW_AUTHENTICATE), !open);
        }
    }

    #[tokio::test]
    async fn nothing_else_is_answered() {
        assert_eq!(get("/etc/passwd", &sample()).await.0, 404);
        let response = respond(&Method::POST, &"/livez".parse().unwrap(), true, &sample());
        assert_eq!(response.status(), 405);
        assert_eq!(response.headers()[ALLOW], "GET, HEAD");
    }

    #[tokio::test]
    async fn the_latest_status_is_served_over_a_socket() {
        let listener = bind("node.http", "127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let (publish, snapshot) = watch::channel(Arc::new(Status::default()));
        tokio::spawn(serve(listener, snapshot, watch::channel(None).1));
        let ask = async || {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        assert!(ask().await.starts_with("HTTP/1.1 503"));
        publish.send_replace(Arc::new(sample()));
        assert!(ask().await.starts_with("HTTP/1.1 200"));
        let error = bind("node.http", address).await.unwrap_err().to_string();
        assert!(
            error.contains("node.http") && error.contains("in use"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_slow_reader_gives_its_place_back() {
        let listener = bind("node.http", "127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let (_publish, snapshot) = watch::channel(Arc::new(sample()));
        let life = Duration::from_millis(600);
        tokio::spawn(serve_for(life, listener, snapshot, watch::channel(None).1));
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        // Asks until nobody takes more: answers that are not read fill one way, requests the other.
        let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
        let asking = async { while stream.write_all(request).await.is_ok() {} };
        let ended = timeout(Duration::from_secs(60), asking).await;
        assert!(ended.is_ok(), "it is served for ever");
    }
}
