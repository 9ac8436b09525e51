//! TLS for probes: settings shared among probes, and the handshake.
//!
//! By default a probe does not insist on a valid certificate (a health check that fails with an
//! expired certificate takes all backends out at once), but where somebody reads what it has seen it
//! looks at it and reports what is wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::{CipherSuite, ClientConfig, HandshakeKind, NamedGroup, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::failure::Failure;
use super::outcome::Class;
use super::trace::Trace;
use crate::model::{ClientCertificate, ProbeSpec, TlsOptions};

mod expiry;
mod joined;
mod spare;
mod verifier;
pub use joined::Joined;
use verifier::{Judge, Lenient};

/// Age at which a target's TLS settings are made anew. Until then sessions are resumed, which
/// costs a tenth of a full handshake; so a full handshake, and a new look at the CA file, happens at
/// least this often.
const MAX_AGE: Duration = Duration::from_secs(60);

/// Protocol offered by ALPN unless the configuration names others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alpn {
    /// None is offered.
    Absent,
    Http1,
    Http2,
}

impl Alpn {
    fn names(self) -> Vec<Vec<u8>> {
        match self {
            Self::Absent => Vec::new(),
            Self::Http1 => vec![b"http/1.1".to_vec()],
            Self::Http2 => vec![b"h2".to_vec()],
        }
    }
}

/// TLS could not be set up. All of these are faults of this side.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read the CA file {}: {source}; see `ca` in the service's health section", path.display())]
    CaUnreadable { path: PathBuf, source: io::Error },
    #[error("no certificate in PEM form in the CA file {}", path.display())]
    CaEmpty { path: PathBuf },
    #[error("the CA file {} is not valid PEM: {reason}", path.display())]
    CaInvalid { path: PathBuf, reason: String },
    #[error(
        "cannot read {}: {source}; see `client_cert` and `client_key` in the service's health section",
        path.display()
    )]
    ClientUnreadable { path: PathBuf, source: io::Error },
    #[error("{} is no client certificate or key to be used: {reason}", path.display())]
    ClientInvalid { path: PathBuf, reason: String },
    #[error(
        "this host has no trusted root certificates; install ca-certificates or set `ca` in the \
         service's health section"
    )]
    NoRoots,
    #[error("cannot load this host's root certificates: {0}")]
    Roots(String),
    #[error("`{0}` is not a name that a TLS server can have")]
    ServerName(String),
    #[error("cannot set up TLS: {0}")]
    Rustls(#[from] rustls::Error),
    #[error("cannot set up the check of certificates: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// What a probe needs for its handshake.
#[derive(Clone, Debug)]
pub struct TlsContext {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    verify: bool,
    /// `None`: there are no roots to judge by, and the probe does not insist.
    judge: Option<Arc<Judge>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    target: SocketAddr,
    /// Which backend it is where the target is a VIP.
    backend: Option<IpAddr>,
    alpn: Alpn,
    /// Offered instead.
    other_alpn: Option<Vec<String>>,
    sni: Option<String>,
    verify: bool,
    ca: Option<PathBuf>,
    client: Option<ClientCertificate>,
}

/// TLS settings of all targets: each its own, so that one backend's session ticket is never shown
/// to another.
#[derive(Debug, Default)]
pub struct TlsContexts {
    known: Mutex<BTreeMap<Key, (Instant, TlsContext)>>,
    system_roots: OnceCell<Arc<RootCertStore>>,
}

impl TlsContexts {
    /// Settings for the probe's target, made now or at most [`MAX_AGE`] ago.
    pub async fn get(
        &self,
        spec: &ProbeSpec,
        options: &TlsOptions,
        alpn: Alpn,
    ) -> Result<TlsContext, TlsError> {
        let key = Key {
            target: spec.target,
            backend: spec.egress.via.map(|via| via.backend),
            alpn,
            other_alpn: options.alpn.clone(),
            sni: options.sni.clone(),
            verify: options.verify,
            ca: options.ca.clone(),
            client: options.client.clone(),
        };
        if let Some(context) = self.fresh(&key) {
            return Ok(context);
        }
        let context = self.make(&key).await?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Targets that are probed no more leave here, so the map is as large as the config.
        known.retain(|_, (made, _)| made.elapsed() < MAX_AGE);
        known.insert(key, (Instant::now(), context.clone()));
        Ok(context)
    }

    fn fresh(&self, key: &Key) -> Option<TlsContext> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (made, context) = known.get(key)?;
        (made.elapsed() < MAX_AGE).then(|| context.clone())
    }

    async fn make(&self, key: &Key) -> Result<TlsContext, TlsError> {
        let provider = Arc::new(provider());
        let pinned = match &key.ca {
            Some(path) => read_ca(path).await?,
            None => Vec::new(),
        };
        let roots = match &key.ca {
            Some(path) => Arc::new(roots_of(path, &pinned)?),
            None => self.system_roots().await?,
        };
        let judge = if !roots.is_empty() {
            Some(Arc::new(Judge::new(roots, pinned, provider.clone())?))
        } else if key.verify {
            return Err(TlsError::NoRoots);
        } else {
            None
        };
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .dangerous();
        let builder = match &judge {
            Some(judge) if key.verify => builder.with_custom_certificate_verifier(judge.clone()),
            _ => builder.with_custom_certificate_verifier(Arc::new(Lenient::new(&provider))),
        };
        let mut config = match &key.client {
            None => builder.with_no_client_auth(),
            Some(client) => {
                let (chain, private) = read_client(client).await?;
                builder
                    .with_client_auth_cert(chain, private)
                    .map_err(|error| TlsError::ClientInvalid {
                        path: client.certificate.clone(),
                        reason: error.to_string(),
                    })?
            }
        };
        config.alpn_protocols = match &key.other_alpn {
            Some(names) => names.iter().map(|name| name.as_bytes().to_vec()).collect(),
            None => key.alpn.names(),
        };
        config.resumption = Resumption::in_memory_sessions(4);
        // An IP address as a name sends no SNI and is what the certificate is checked against.
        let name = match &key.sni {
            Some(sni) => {
                ServerName::try_from(sni.clone()).map_err(|_| TlsError::ServerName(sni.clone()))?
            }
            None => ServerName::from(key.target.ip()),
        };
        Ok(TlsContext {
            config: Arc::new(config),
            name,
            verify: key.verify,
            judge,
        })
    }

    async fn system_roots(&self) -> Result<Arc<RootCertStore>, TlsError> {
        self.system_roots
            .get_or_try_init(|| async {
                let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs)
                    .await
                    .map_err(|error| TlsError::Roots(error.to_string()))?;
                for error in &loaded.errors {
                    tracing::warn!(%error, "a root certificate of this host is unreadable");
                }
                let mut roots = RootCertStore::empty();
                let (_, ignored) = roots.add_parsable_certificates(loaded.certs);
                if ignored > 0 {
                    tracing::debug!(ignored, "root certificates of this host not understood");
                }
                Ok(Arc::new(roots))
            })
            .await
            .cloned()
    }
}

/// All that `ring` offers, what is cheapest first. Each hello has a key of the first group for TLS 1.3,
/// also where a session is resumed, and one of P-256 costs two thirds of one of X25519; where it was
/// not needed, the next hello has the same ([`spare`]). Most servers
/// leave the cipher to the client; SHA-256 is an instruction where SHA-384 is a program.
fn provider() -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    let groups = &mut provider.kx_groups;
    groups.retain(|group| group.name() != NamedGroup::secp256r1);
    groups.insert(0, &spare::P256);
    let is_cheap = |suite| {
        matches!(
            suite,
            CipherSuite::TLS13_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    };
    provider
        .cipher_suites
        .sort_by_key(|suite| !is_cheap(suite.suite()));
    provider
}

async fn read_ca(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = tokio::fs::read(path)
        .await
        .map_err(|source| TlsError::CaUnreadable {
            path: path.to_owned(),
            source,
        })?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| TlsError::CaInvalid {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    if certificates.is_empty() {
        return Err(TlsError::CaEmpty {
            path: path.to_owned(),
        });
    }
    Ok(certificates)
}

/// A client's certificate with its chain, and its key.
async fn read_client(
    client: &ClientCertificate,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let read = async |path: &PathBuf| {
        let path = path.clone();
        tokio::fs::read(&path)
            .await
            .map_err(|source| TlsError::ClientUnreadable { path, source })
    };
    let invalid = |path: &PathBuf, reason: String| TlsError::ClientInvalid {
        path: path.clone(),
        reason,
    };
    let pem = read(&client.certificate).await?;
    let chain = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| invalid(&client.certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(invalid(
            &client.certificate,
            "no certificate in PEM form".to_owned(),
        ));
    }
    let pem = read(&client.key).await?;
    let key = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|error| invalid(&client.key, error.to_string()))?;
    Ok((chain, key))
}

fn roots_of(
    path: &Path,
    certificates: &[CertificateDer<'static>],
) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots
            .add(certificate.clone())
            .map_err(|error| TlsError::CaInvalid {
                path: path.to_owned(),
                reason: error.to_string(),
            })?;
    }
    Ok(roots)
}

impl TlsContext {
    /// The handshake on a fresh connection, and a look at the certificate.
    pub async fn connect(
        &self,
        tcp: TcpStream,
        trace: &mut Trace,
    ) -> Result<TlsStream<Joined>, Failure> {
        trace.begin_handshake();
        let handshake = TlsConnector::from(self.config.clone())
            .connect(self.name.clone(), Joined::new(tcp))
            .into_fallible();
        let mut stream = match handshake.await {
            Ok(stream) => stream,
            Err((error, mut connection)) => {
                connection.handshake_ended();
                // Of a certificate that was refused, too: when it expires may be why.
                if let (Some(judge), true) = (&self.judge, self.verify) {
                    trace.certificate(judge.shown());
                }
                // The alert that says why, as far as it goes out at once.
                connection.flush().now_or_never();
                return Err(Failure::tls(&error));
            }
        };
        stream.get_mut().0.handshake_ended();
        let (_, session) = stream.get_ref();
        // A resumed session has that of the one it resumes.
        let chain = session.peer_certificates().unwrap_or_default();
        let not_after = chain.first().and_then(|own| expiry::not_after(own));
        trace.certificate(not_after);
        // After the handshake, because a resumed one shows the verifier no certificate: one that
        // has expired since is still found. Only where it decides, or somebody reads it.
        let judge = self.judge.as_ref();
        let problem = judge.filter(|_| self.verify || trace.is_told());
        let problem = problem.and_then(|judge| judge.problem(chain, &self.name));
        if let (Some(problem), true) = (&problem, self.verify) {
            return Err(Failure::new(
                Class::Tls,
                format!("certificate refused: {problem}"),
            ));
        }
        let seen = fmt::from_fn(|f| {
            if let Some(version) = session.protocol_version() {
                let name = version.as_str().unwrap_or("unknown version");
                write!(f, "{}, ", name.replace('_', "."))?;
            }
            if let Some(alpn) = session.alpn_protocol() {
                write!(f, "{}, ", String::from_utf8_lossy(alpn))?;
            }
            if session.handshake_kind() == Some(HandshakeKind::Resumed) {
                f.write_str("resumed, ")?;
            }
            match (&problem, judge) {
                (Some(problem), _) => write!(f, "certificate not valid: {problem}")?,
                (None, Some(_)) => f.write_str("certificate valid")?,
                (None, None) => {
                    f.write_str("certificate not judged: this host has no trusted roots")?;
                }
            }
            not_after.map_or(Ok(()), |end| write!(f, ", expires {end}"))
        });
        trace.step("tls", seen);
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cheap_comes_first_and_nothing_is_left_out() {
        let (own, usual) = (provider(), rustls::crypto::ring::default_provider());
        let groups = |provider: &CryptoProvider| {
            let groups = provider.kx_groups.iter();
            groups.map(|group| group.name()).collect::<Vec<_>>()
        };
        let suites = |provider: &CryptoProvider| {
            let suites = provider.cipher_suites.iter();
            suites.map(|suite| suite.suite()).collect::<Vec<_>>()
        };
        assert_eq!(groups(&own)[0], NamedGroup::secp256r1);
        let usual_groups = groups(&usual);
        assert_eq!(groups(&own).len(), usual_groups.len());
        assert!(
            usual_groups
                .iter()
                .all(|group| groups(&own).contains(group))
        );
        let is_cheap = |suite: &CipherSuite| format!("{suite:?}").ends_with("AES_128_GCM_SHA256");
        assert!(suites(&own)[..3].iter().all(is_cheap));
        assert_eq!(suites(&own).len(), suites(&usual).len());
        assert!(
            suites(&usual)
                .iter()
                .all(|suite| suites(&own).contains(suite))
        );
    }
}
