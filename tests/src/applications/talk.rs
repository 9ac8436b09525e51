//! The clients' side of a long connection: one exchange after the other, each compared.

use std::io::Read;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use h2::RecvStream;
use h2::SendStream;
use http::Request;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

use super::backend::{FILE, RATE};
use crate::load::TIMEOUT;
use crate::load::http::{Client, connect};
use crate::pattern;
use crate::server::grpc_frame;

/// An open connection of an application.
pub trait Conversation {
    /// Sends and receives a little, and gives the number of bytes that were received and right. A
    /// wait of more than [`TIMEOUT`] is an error.
    fn exchange(&mut self) -> Result<u64>;
}

/// Opens one, and tells the backend that serves it.
pub type Open = fn(SocketAddr) -> Result<(String, Box<dyn Conversation>)>;

/// Length of the messages over gRPC and WebSocket: of 64 lengths, from 8 bytes to 16 KiB, so that
/// they begin and end anywhere in the packets.
fn message(number: u64) -> Vec<u8> {
    let length = 8 + (number % 64) * 259;
    let mut message = number.to_be_bytes().to_vec();
    while (message.len() as u64) < length {
        let left = length - message.len() as u64;
        message.extend_from_slice(&pattern::chunk(number * 8191 + message.len() as u64, left));
    }
    message
}

/// Files from nginx, one after the other on one connection.
pub fn nginx(to: SocketAddr) -> Result<(String, Box<dyn Conversation>)> {
    Download::open(to, "/pattern".into())
}

/// Answers of a server behind HAProxy, one after the other on one connection.
pub fn haproxy(to: SocketAddr) -> Result<(String, Box<dyn Conversation>)> {
    Download::open(to, format!("/download?bytes={FILE}&rate={RATE}"))
}

struct Download {
    client: Client,
    path: String,
    offset: u64,
}

impl Download {
    fn open(to: SocketAddr, path: String) -> Result<(String, Box<dyn Conversation>)> {
        let mut download = Self {
            client: Client::new(to, true),
            path,
            offset: 0,
        };
        let backend = download.ask()?;
        Ok((backend, Box::new(download)))
    }

    fn ask(&mut self) -> Result<String> {
        let (head, _) = self.client.get(&self.path)?;
        ensure!(
            head.status == 200 && head.length == FILE && !head.last,
            "unexpected answer: {head:?}"
        );
        self.offset = 0;
        head.backend.context("the answer names no backend")
    }
}

impl Conversation for Download {
    fn exchange(&mut self) -> Result<u64> {
        if self.offset == FILE {
            self.ask()?;
        }
        let left = usize::try_from(FILE - self.offset)?;
        let mut buffer = vec![0; left.min(64 << 10)];
        let body = self.client.body().context("the connection is closed")?;
        let length = body
            .read(&mut buffer)
            .with_context(|| format!("after {} bytes", self.offset))?;
        ensure!(length > 0, "closed after {} bytes", self.offset);
        ensure!(
            pattern::matches(self.offset, &buffer[..length]),
            "wrong bytes within the {length} after {}",
            self.offset
        );
        self.offset += length as u64;
        Ok(length as u64)
    }
}

/// A connection for one small request to nginx, over when it is answered.
pub fn request(to: SocketAddr) -> Result<(String, Box<dyn Conversation>)> {
    let (status, body) = Client::new(to, false).fetch("/")?;
    ensure!(status == 200, "HTTP {status}");
    let backend = String::from_utf8(body).context("the body is not text")?;
    Ok((backend, Box::new(Over)))
}

struct Over;

impl Conversation for Over {
    fn exchange(&mut self) -> Result<u64> {
        bail!("the connection was for one request")
    }
}

/// A gRPC stream in both directions.
pub fn grpc(to: SocketAddr) -> Result<(String, Box<dyn Conversation>)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (send, receive) = runtime
        .block_on(async { timeout(TIMEOUT, call(to)).await })
        .context("no answer in time")??;
    let mut stream = Stream {
        runtime,
        send,
        receive,
        buffer: Vec::new(),
        number: 0,
    };
    // Field 1 of type string, shorter than 128 bytes.
    let greeting = stream.receive()?;
    let name = greeting.get(2..).context("the greeting is too short")?;
    let name = String::from_utf8(name.to_vec()).context("the greeting is not text")?;
    Ok((name, Box::new(stream)))
}

struct Stream {
    runtime: Runtime,
    send: SendStream<Bytes>,
    receive: RecvStream,
    buffer: Vec<u8>,
    number: u64,
}

async fn call(to: SocketAddr) -> Result<(SendStream<Bytes>, RecvStream)> {
    let stream = tokio::net::TcpStream::connect(to)
        .await
        .context("connecting")?;
    stream.set_nodelay(true)?;
    let (sender, connection) = h2::client::handshake(stream)
        .await
        .context("HTTP/2 handshake")?;
    // How the connection ends is told by the stream.
    tokio::spawn(async move { drop(connection.await) });
    let mut sender = sender.ready().await.context("HTTP/2 settings")?;
    let request = Request::post(format!("http://{to}/lab.Echo/Stream"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, send) = sender
        .send_request(request, false)
        .context("sending the call")?;
    let response = response.await.context("waiting for the answer")?;
    ensure!(response.status() == 200, "HTTP {}", response.status());
    Ok((send, response.into_body()))
}

impl Stream {
    /// One message, without its frame.
    fn receive(&mut self) -> Result<Vec<u8>> {
        let (body, buffer) = (&mut self.receive, &mut self.buffer);
        let read = async {
            loop {
                if let Some(head) = buffer.first_chunk::<5>() {
                    let [_, length @ ..] = *head;
                    let end = 5 + usize::try_from(u32::from_be_bytes(length))?;
                    if buffer.len() >= end {
                        let message = buffer[5..end].to_vec();
                        buffer.drain(..end);
                        return Ok(message);
                    }
                }
                let chunk = body.data().await.context("the stream was ended")?;
                let chunk = chunk.context("reading the stream")?;
                body.flow_control().release_capacity(chunk.len())?;
                buffer.extend_from_slice(&chunk);
            }
        };
        self.runtime
            .block_on(async { timeout(TIMEOUT, read).await })
            .context("no message in time")?
    }
}

impl Conversation for Stream {
    fn exchange(&mut self) -> Result<u64> {
        self.number += 1;
        let sent = message(self.number);
        self.send
            .send_data(grpc_frame(&sent), false)
            .context("sending")?;
        let received = self.receive()?;
        ensure!(
            received == sent,
            "message {} came back changed",
            self.number
        );
        Ok(received.len() as u64)
    }
}

/// WebSocket through nginx.
pub fn websocket(to: SocketAddr) -> Result<(String, Box<dyn Conversation>)> {
    let stream = connect(to)?;
    let (mut socket, _) = tungstenite::client(format!("ws://{to}/websocket"), stream)
        .map_err(|error| anyhow::anyhow!("WebSocket handshake: {error}"))?;
    let greeting = socket.read().context("waiting for the greeting")?;
    let name = greeting
        .into_text()
        .context("the greeting is not text")?
        .to_string();
    Ok((name, Box::new(Socket { socket, number: 0 })))
}

struct Socket {
    socket: WebSocket<std::net::TcpStream>,
    number: u64,
}

impl Conversation for Socket {
    fn exchange(&mut self) -> Result<u64> {
        self.number += 1;
        let sent = message(self.number);
        self.socket
            .send(Message::binary(sent.clone()))
            .context("sending")?;
        let received = self.socket.read().context("waiting for the echo")?;
        ensure!(
            received.is_binary() && received.into_data() == sent,
            "message {} came back changed",
            self.number
        );
        Ok(sent.len() as u64)
    }
}
