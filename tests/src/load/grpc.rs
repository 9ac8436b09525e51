//! A gRPC client: one connection and one unary call for each request.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use http::Request;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::{Requester, TIMEOUT};
use crate::server::grpc_frame;

/// A caller of `/lab.Echo/Name`, or of another method that gives the backend's name.
#[derive(Debug)]
pub struct Client {
    to: SocketAddr,
    path: &'static str,
    runtime: Option<Runtime>,
}

impl Client {
    /// A client of one server.
    pub fn new(to: SocketAddr) -> Self {
        Self {
            to,
            path: "/lab.Echo/Name",
            runtime: None,
        }
    }

    /// The same, calling another method.
    pub fn calling(self, path: &'static str) -> Self {
        Self { path, ..self }
    }
}

impl Requester for Client {
    fn request(&mut self) -> Result<String> {
        // Made here and not in `new`, because sockets belong to the namespace of their thread.
        let runtime = match self.runtime.take() {
            Some(runtime) => runtime,
            None => tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
        };
        let answer = runtime.block_on(async { timeout(TIMEOUT, call(self.to, self.path)).await });
        self.runtime = Some(runtime);
        answer.context("no answer in time")?
    }
}

async fn call(to: SocketAddr, path: &str) -> Result<String> {
    let stream = TcpStream::connect(to).await.context("connecting")?;
    let (sender, connection) = h2::client::handshake(stream)
        .await
        .context("HTTP/2 handshake")?;
    let driver = tokio::spawn(connection);
    let mut sender = sender.ready().await.context("HTTP/2 settings")?;
    let request = Request::post(format!("http://{to}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, mut stream) = sender
        .send_request(request, false)
        .context("sending the call")?;
    stream
        .send_data(grpc_frame(&[]), true)
        .context("sending the message")?;
    let mut body = response
        .await
        .context("waiting for the answer")?
        .into_body();
    let mut message = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.context("reading the answer")?;
        body.flow_control().release_capacity(chunk.len())?;
        message.extend_from_slice(&chunk);
    }
    let trailers = body
        .trailers()
        .await
        .context("reading the trailers")?
        .unwrap_or_default();
    let status = trailers
        .get("grpc-status")
        .map(|status| status.as_bytes().to_vec());
    ensure!(status.as_deref() == Some(b"0"), "grpc-status {status:?}");
    drop(sender);
    driver.abort();
    // Five bytes of frame, two of field number and length, then the name.
    let name = message.get(7..).context("an answer too short")?;
    String::from_utf8(name.to_vec()).context("the name is not text")
}
