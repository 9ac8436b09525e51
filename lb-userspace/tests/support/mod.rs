//! Responders for the recorded cases: servers that behave exactly as badly as a case says.
//!
//! Everything listens on 127.0.0.1 and ends with the value that started it.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use lb_userspace::probe::{Outcome, Verdict};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Longest time that a responder stays with one connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// A case's JSON object.
pub type Json = serde_json::Value;

/// The cases of a file.
pub fn load(text: &str) -> Json {
    serde_json::from_str(text).unwrap()
}

/// A string field.
pub fn str<'a>(json: &'a Json, key: &str) -> &'a str {
    json[key]
        .as_str()
        .unwrap_or_else(|| panic!("no text `{key}` in {json}"))
}

/// A number field.
pub fn number(json: &Json, key: &str) -> u64 {
    json[key]
        .as_u64()
        .unwrap_or_else(|| panic!("no number `{key}` in {json}"))
}

/// A pause of an op.
pub fn millis(json: &Json, key: &str) -> Duration {
    Duration::from_millis(number(json, key))
}

/// An accepted connection, plain or TLS.
pub enum Connection {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Connection {
    pub fn stream(&mut self) -> &mut dyn Stream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream,
        }
    }

    pub fn into_tcp(self) -> TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.into_inner().0,
        }
    }

    /// The orderly close: everything sent, FIN (and close_notify), and what the peer still sends
    /// is taken, so that no RST destroys what it has not read.
    pub async fn fin(mut self) {
        let _ = self.stream().shutdown().await;
        drain(self.into_tcp()).await;
    }

    /// FIN without a word of TLS.
    pub async fn raw_fin(self) {
        let mut tcp = self.into_tcp();
        let _ = tcp.shutdown().await;
        drain(tcp).await;
    }

    /// RST.
    pub fn rst(self) {
        let tcp = self.into_tcp();
        tcp.set_zero_linger().unwrap();
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        // The probe may have left already: that is its right.
        let _ = self.stream().write_all(bytes).await;
        let _ = self.stream().flush().await;
    }
}

async fn drain(mut tcp: TcpStream) {
    let mut buffer = [0; 4096];
    let reading = async { while matches!(tcp.read(&mut buffer).await, Ok(1..)) {} };
    let _ = tokio::time::timeout(PATIENCE, reading).await;
}

/// A server of one case; ends when dropped.
pub struct Server {
    pub address: SocketAddr,
    pub certificate: Option<Certificate>,
    task: Option<JoinHandle<()>>,
    /// Sockets that must stay open.
    kept: Vec<TcpSocket>,
    fillers: Vec<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        for task in self.task.iter().chain(&self.fillers) {
            task.abort();
        }
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

impl Server {
    /// Accepts; connection number n is played by `play(n, connection)`.
    pub async fn start<F, P>(tls: Option<Tls>, play: P) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
        P: Fn(usize, Connection) -> F + Send + Sync + 'static,
    {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let certificate = tls.as_ref().map(|tls| tls.certificate.clone());
        let play = Arc::new(play);
        let task = tokio::spawn(async move {
            for count in 0.. {
                let (tcp, _) = listener.accept().await.unwrap();
                tcp.set_nodelay(true).unwrap();
                let play = play.clone();
                let acceptor = tls.as_ref().map(|tls| tls.acceptor.clone());
                tokio::spawn(async move {
                    let connection = match acceptor {
                        None => Connection::Plain(tcp),
                        Some(acceptor) => match acceptor.accept(tcp).await {
                            Ok(stream) => Connection::Tls(Box::new(stream)),
                            // The alert is sent; the probe must make of it what the case says.
                            Err(_) => return,
                        },
                    };
                    play(count, connection).await;
                });
            }
        });
        Self {
            address,
            certificate,
            task: Some(task),
            kept: Vec::new(),
            fillers: Vec::new(),
        }
    }

    /// An address where nobody listens, and nobody else can begin to.
    pub fn refusing() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(loopback()).unwrap();
        Self {
            address: socket.local_addr().unwrap(),
            certificate: None,
            task: None,
            kept: vec![socket],
            fillers: Vec::new(),
        }
    }

    /// An address whose SYNs get no reply: a listener that never accepts, its queue full.
    pub async fn black_hole() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(loopback()).unwrap();
        let address = socket.local_addr().unwrap();
        let listener = socket.listen(1).unwrap();
        let mut fillers = Vec::new();
        // More than the queue holds: some of these connect, the others are the proof that it is
        // full.
        let (connected, mut count) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..6 {
            let connected = connected.clone();
            fillers.push(tokio::spawn(async move {
                let stream = TcpStream::connect(address).await;
                let _ = connected.send(());
                tokio::time::sleep(PATIENCE * 4).await;
                drop(stream);
            }));
        }
        while tokio::time::timeout(Duration::from_millis(200), count.recv())
            .await
            .is_ok()
        {}
        let task = tokio::spawn(async move {
            tokio::time::sleep(PATIENCE * 4).await;
            drop(listener);
        });
        Self {
            address,
            certificate: None,
            task: Some(task),
            kept: Vec::new(),
            fillers,
        }
    }
}

/// A server's certificate, self-signed for `hc.test`.
#[derive(Clone)]
pub struct Certificate {
    pub pem: String,
    der: rustls_pki_types::CertificateDer<'static>,
    key: Arc<Vec<u8>>,
}

impl Certificate {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// With other parameters than the usual.
    pub fn with(change: impl FnOnce(&mut rcgen::CertificateParams)) -> Self {
        let mut params = rcgen::CertificateParams::new(vec!["hc.test".to_owned()]).unwrap();
        change(&mut params);
        let key = rcgen::KeyPair::generate().unwrap();
        let made = params.self_signed(&key).unwrap();
        Self {
            pem: made.pem(),
            der: made.der().clone(),
            key: Arc::new(key.serialize_der()),
        }
    }

    /// The private key in PEM form.
    pub fn key_pem(&self) -> String {
        rcgen::KeyPair::try_from(self.key.as_slice())
            .unwrap()
            .serialize_pem()
    }

    fn certified(&self) -> Arc<CertifiedKey> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.to_vec()));
        let provider = rustls::crypto::ring::default_provider();
        Arc::new(CertifiedKey::from_der(vec![self.der.clone()], key, &provider).unwrap())
    }
}

/// TLS of a server.
pub struct Tls {
    acceptor: TlsAcceptor,
    certificate: Certificate,
}

impl Tls {
    /// `require_sni`: no certificate for anybody who asks for another name, or none.
    /// `client_certificate`: whether the client must show one.
    pub fn new(require_sni: Option<String>, client_certificate: bool, alpn: &[u8]) -> Self {
        Self::with(Certificate::new(), require_sni, client_certificate, alpn)
    }

    /// With this certificate.
    pub fn with(
        certificate: Certificate,
        require_sni: Option<String>,
        client_certificate: bool,
        alpn: &[u8],
    ) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if client_certificate {
            let mut roots = RootCertStore::empty();
            roots.add(certificate.der.clone()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_cert_resolver(Arc::new(Resolver {
            key: certificate.certified(),
            require_sni,
        }));
        config.alpn_protocols = vec![alpn.to_vec()];
        Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            certificate,
        }
    }
}

#[derive(Debug)]
struct Resolver {
    key: Arc<CertifiedKey>,
    require_sni: Option<String>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match &self.require_sni {
            Some(name) if hello.server_name() != Some(name.as_str()) => None,
            _ => Some(self.key.clone()),
        }
    }
}

/// Asks again while the prober itself says that it got no CPU time: on a starved machine a case
/// proves nothing.
pub async fn judged(mut ask: impl AsyncFnMut() -> Outcome) -> Outcome {
    let mut outcome = ask().await;
    for _ in 0..5 {
        if outcome.verdict != Verdict::Internal {
            break;
        }
        outcome = ask().await;
    }
    outcome
}

/// Variants of an answer that differ from it in a few bytes, or end early; always the same ones.
pub fn mutations(answer: &[u8], count: u64) -> impl Iterator<Item = Vec<u8>> {
    (1..=count).map(move |seed| {
        // splitmix64
        let mut state = seed;
        let mut below = move |limit: usize| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            usize::try_from((mixed ^ (mixed >> 31)) % limit as u64).unwrap()
        };
        let mut mutated = answer.to_vec();
        for _ in 0..=below(4) {
            let place = below(mutated.len());
            mutated[place] = u8::try_from(below(256)).unwrap();
        }
        if below(4) == 0 {
            mutated.truncate(below(mutated.len()));
        }
        mutated
    })
}

/// Whether an outcome is what a case wants: `verdict`, and one of the classes in `class`.
pub fn matches(outcome: &Outcome, verdict: Verdict, class: &str) -> bool {
    let classes = || class.split("_or_").flat_map(|part| part.split('|'));
    outcome.verdict == verdict && classes().any(|class| class == outcome.class.name())
}

/// Collects what did not come out as it must, and tells it all at once.
#[derive(Default)]
pub struct Report {
    wrong: Vec<String>,
    pub right: usize,
}

impl Report {
    pub fn check(&mut self, id: &str, outcome: &Outcome, verdict: Verdict, class: &str) {
        if matches(outcome, verdict, class) {
            self.right += 1;
            println!("{id}: {} ({})", outcome.detail, outcome.class.name());
        } else {
            self.wrong.push(format!(
                "{id}: want {verdict:?} {class}, got {:?} {}: {}\n    {:?}",
                outcome.verdict,
                outcome.class.name(),
                outcome.detail,
                outcome.steps
            ));
        }
    }

    pub fn finish(self) {
        assert!(
            self.wrong.is_empty(),
            "{} right, {} wrong:\n{}",
            self.right,
            self.wrong.len(),
            self.wrong.join("\n")
        );
    }
}
