//! The test servers of one backend: HTTP, gRPC, WebSocket, a TCP echo and a UDP echo in one
//! process.
//!
//! The process is told what to do over its standard input, one [`Order`] a line, each answered by
//! `ok` on standard output; it ends when its input ends, so it cannot outlive a laboratory.

mod echo;
mod grpc;
mod http;
mod websocket;

pub(crate) use grpc::frame as grpc_frame;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};

/// What the process serves, from its command line.
#[derive(Debug, Default)]
pub struct Options {
    /// Name it answers with.
    pub name: String,
    /// Addresses of the HTTP server.
    pub http: Vec<SocketAddr>,
    /// Addresses of the gRPC server.
    pub grpc: Vec<SocketAddr>,
    /// Addresses of the WebSocket echo.
    pub websocket: Vec<SocketAddr>,
    /// Addresses of the TCP echo.
    pub tcp: Vec<SocketAddr>,
    /// Addresses of the UDP echo. Answers come from the address a datagram was sent to only if
    /// that is listed, so wildcards do not serve a VIP.
    pub udp: Vec<SocketAddr>,
}

impl Options {
    /// Reads `--name b1 --http 10.0.0.1:80 …`; every address option may be repeated.
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self::default();
        while let Some(option) = words.next() {
            let value = words
                .next()
                .with_context(|| format!("{option} needs a value"))?;
            let list = match option.as_str() {
                "--name" => {
                    options.name = value;
                    continue;
                }
                "--http" => &mut options.http,
                "--grpc" => &mut options.grpc,
                "--websocket" => &mut options.websocket,
                "--tcp" => &mut options.tcp,
                "--udp" => &mut options.udp,
                other => bail!("unknown option {other}"),
            };
            list.push(value.parse().with_context(|| format!("{option} {value}"))?);
        }
        Ok(options)
    }
}

/// How `/readyz` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// 200.
    Ready,
    /// 503.
    Unready,
    /// 200, and the header that says it is degraded.
    Degraded,
    /// 404, by which it asks to be drained where that is configured.
    Leaving,
    /// Nothing: the request is left hanging.
    Hang,
    /// `/` answers with 500, whatever `/readyz` says.
    Fail,
    /// It no longer does.
    Work,
    /// gRPC health says SERVING.
    Serving,
    /// gRPC health says NOT_SERVING.
    NotServing,
}

impl Order {
    const ALL: [Self; 9] = [
        Self::Fail,
        Self::Work,
        Self::Ready,
        Self::Unready,
        Self::Degraded,
        Self::Leaving,
        Self::Hang,
        Self::Serving,
        Self::NotServing,
    ];

    /// Its word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Unready => "unready",
            Self::Degraded => "degraded",
            Self::Leaving => "leaving",
            Self::Hang => "hang",
            Self::Fail => "fail",
            Self::Work => "work",
            Self::Serving => "serving",
            Self::NotServing => "not-serving",
        }
    }
}

/// What the servers of the process share.
#[derive(Debug)]
struct State {
    name: String,
    readiness: AtomicU8,
    serving: AtomicBool,
    failing: AtomicBool,
}

impl State {
    fn obey(&self, order: Order) {
        match order {
            Order::Ready | Order::Unready | Order::Degraded | Order::Leaving | Order::Hang => {
                self.readiness.store(order as u8, Ordering::SeqCst);
            }
            Order::Fail => self.failing.store(true, Ordering::SeqCst),
            Order::Work => self.failing.store(false, Ordering::SeqCst),
            Order::Serving => self.serving.store(true, Ordering::SeqCst),
            Order::NotServing => self.serving.store(false, Ordering::SeqCst),
        }
    }

    fn is(&self, readiness: Order) -> bool {
        self.readiness.load(Ordering::SeqCst) == readiness as u8
    }

    fn fails(&self) -> bool {
        self.failing.load(Ordering::SeqCst)
    }

    fn serving(&self) -> bool {
        self.serving.load(Ordering::SeqCst)
    }
}

/// Serves until standard input ends.
pub fn run(options: Options) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(options))
}

async fn serve(options: Options) -> Result<()> {
    let state = Arc::new(State {
        name: options.name,
        readiness: AtomicU8::new(Order::Ready as u8),
        serving: AtomicBool::new(true),
        failing: AtomicBool::new(false),
    });
    for address in options.http {
        tokio::spawn(http::serve(listen(address)?, Arc::clone(&state)));
    }
    for address in options.grpc {
        tokio::spawn(grpc::serve(listen(address)?, Arc::clone(&state)));
    }
    for address in options.websocket {
        tokio::spawn(websocket::serve(listen(address)?, Arc::clone(&state)));
    }
    for address in options.tcp {
        tokio::spawn(echo::tcp(listen(address)?, Arc::clone(&state)));
    }
    for address in options.udp {
        let socket = UdpSocket::bind(address)
            .await
            .with_context(|| format!("UDP {address}"))?;
        tokio::spawn(echo::udp(socket, Arc::clone(&state)));
    }
    println!("ok");
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = orders.next_line().await.context("cannot read orders")? {
        match Order::ALL.into_iter().find(|order| order.word() == line) {
            Some(order) => state.obey(order),
            None => bail!("unknown order {line:?}"),
        }
        println!("ok");
    }
    Ok(())
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let bind = || {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        // A backend that was killed comes back at once, whatever is left in TIME_WAIT.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(1024)
    };
    bind().with_context(|| format!("cannot listen on {address}"))
}

/// Accepts for ever, with one task for each connection.
async fn accept<F>(listener: TcpListener, mut handle: impl FnMut(tokio::net::TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    eprintln!("set_nodelay: {error}");
                }
                tokio::spawn(handle(stream));
            }
            // The peer gave up before it was accepted, or descriptors ran out for a moment.
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::task::yield_now().await;
            }
        }
    }
}
