//! A QUIC stack on both sides: servers that name themselves in a stream, and clients that move.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_tests::Host;
use lb_tests::agent::SOON;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout,
    RecvStream, SendStream, ServerConfig, TokioRuntime, TransportConfig,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::timeout;

/// Name in the servers' certificate.
const NAME: &str = "lab";
/// Octets of a connection ID after its server ID: more than the four that QUIC-LB asks for.
const NONCE: usize = 6;
/// Config rotation 2 and a length that is not encoded: any first octet but 0xe0 and above names a
/// server.
const FIRST: u8 = 0x40;

/// Connection IDs that name a server, as draft-ietf-quic-load-balancers-21 has them without a key:
/// an octet, the server ID, a nonce.
#[derive(Clone, Copy)]
struct Named {
    server: [u8; 4],
    next: u64,
}

impl ConnectionIdGenerator for Named {
    fn generate_cid(&mut self) -> ConnectionId {
        self.next += 1;
        let mut id = vec![FIRST];
        id.extend(self.server);
        id.extend(&self.next.to_be_bytes()[8 - NONCE..]);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        1 + self.server.len() + NONCE
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Who chooses a server's connection IDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ids {
    /// The server ID that `lb` expects by default: the end of the backend's address.
    Named,
    /// quinn's own: random.
    Random,
}

/// What both sides share: the certificate, and the runtime on which all endpoints are.
pub struct Stack {
    runtime: tokio::runtime::Runtime,
    server: ServerConfig,
    client: ClientConfig,
}

/// The last four octets of an address.
fn tail(address: IpAddr) -> [u8; 4] {
    let [.., a, b, c, d] = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    [a, b, c, d]
}

/// A socket belongs to the namespace in which it was made.
fn socket(host: &Host, address: SocketAddr) -> Result<UdpSocket> {
    let made = host.namespace.within(move || UdpSocket::bind(address))?;
    made.with_context(|| format!("{}: UDP {address}", host.name))
}

impl Stack {
    pub fn new() -> Result<Self> {
        let certified = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])?;
        let certificate = CertificateDer::from(certified.cert);
        let key = PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
        let mut transport = TransportConfig::default();
        // A machine that is busy elsewhere must not end a connection.
        transport.max_idle_timeout(Some(IdleTimeout::try_from(SOON)?));
        transport.keep_alive_interval(Some(Duration::from_secs(5)));
        let transport = Arc::new(transport);
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone())?;
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(ring)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        client.transport_config(Arc::clone(&transport));
        let mut server = ServerConfig::with_single_cert(vec![certificate], key)?;
        server.transport_config(transport);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        Ok(Self {
            runtime,
            server,
            client,
        })
    }

    /// A server on `host` that listens at `address`; ends with the stack. Each stream begins with
    /// the host's name and a space, and then echoes.
    pub fn serve(&self, host: &Host, address: SocketAddr, ids: Ids) -> Result<()> {
        let mut config = EndpointConfig::default();
        if ids == Ids::Named {
            let first = Named {
                server: tail(host.address(address.ip())),
                next: 0,
            };
            config.cid_generator(move || Box::new(first));
        }
        let socket = socket(host, address)?;
        let _guard = self.runtime.enter();
        let server = Some(self.server.clone());
        let endpoint = Endpoint::new(config, server, socket, Arc::new(TokioRuntime))?;
        let name = host.name.clone();
        self.runtime.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let name = name.clone();
                tokio::spawn(async move {
                    // A connection that breaks is the client's to report.
                    if let Ok(connection) = incoming.await {
                        while let Ok((send, receive)) = connection.accept_bi().await {
                            tokio::spawn(echo(name.clone(), send, receive));
                        }
                    }
                });
            }
        });
        Ok(())
    }

    /// Connects from a port of its own.
    pub fn connect(&self, host: &Host, to: SocketAddr) -> Result<Client> {
        let from = SocketAddr::new(host.address(to.ip()), 0);
        let socket = socket(host, from)?;
        let connect = async {
            let runtime = Arc::new(TokioRuntime);
            let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, runtime)?;
            let connecting = endpoint.connect_with(self.client.clone(), to, NAME)?;
            let connection = timeout(SOON, connecting).await.context("no connection")??;
            let (send, receive) = connection.open_bi().await?;
            let mut client = Client {
                endpoint,
                connection,
                send,
                receive,
                home: String::new(),
                sent: 0,
            };
            client.send.write_all(b" ").await?;
            client.home = timeout(SOON, client.word())
                .await
                .context("no greeting")??;
            Ok(client)
        };
        let connected: Result<Client> = self.runtime.block_on(connect);
        connected.with_context(|| format!("from {from} to {to}"))
    }

    /// Goes on from another address or port.
    pub fn rebind(&self, client: &Client, host: &Host, from: IpAddr) -> Result<()> {
        let socket = socket(host, SocketAddr::new(from, 0))?;
        let _guard = self.runtime.enter();
        client.endpoint.rebind(socket).context("rebind")
    }

    /// Sends a word over the client's one stream and waits for it to come back.
    pub fn exchange(&self, client: &mut Client) -> Result<()> {
        client.sent += 1;
        let word = client.sent.to_string();
        let (home, path) = (client.home.clone(), client.endpoint.local_addr()?);
        let exchange = async {
            client.send.write_all(format!("{word} ").as_bytes()).await?;
            client.word().await
        };
        let answer: Result<String> = self.runtime.block_on(async {
            timeout(SOON, exchange)
                .await
                .context("no answer in the stream")?
        });
        let answer = answer.with_context(|| format!("{path} with {home}, word {word}"))?;
        ensure!(answer == word, "{answer:?} came back for {word:?}");
        Ok(())
    }
}

/// Sends the host's name, and all that it receives.
async fn echo(name: String, mut send: SendStream, mut receive: RecvStream) -> Result<()> {
    send.write_all(name.as_bytes()).await?;
    while let Some(chunk) = receive.read_chunk(1 << 16, true).await? {
        send.write_all(&chunk.bytes).await?;
    }
    Ok(())
}

/// A connection with one stream.
pub struct Client {
    endpoint: Endpoint,
    connection: quinn::Connection,
    send: SendStream,
    receive: RecvStream,
    /// The backend that greeted it: a stream that goes on is at the same one, which alone has the
    /// connection's keys.
    pub home: String,
    sent: u64,
}

impl Client {
    /// What comes until the next space.
    async fn word(&mut self) -> Result<String> {
        let mut word = Vec::new();
        let mut octet = [0];
        loop {
            self.receive.read_exact(&mut octet).await?;
            if octet == *b" " {
                return Ok(String::from_utf8(word)?);
            }
            word.extend(octet);
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.close(0_u32.into(), b"");
    }
}
