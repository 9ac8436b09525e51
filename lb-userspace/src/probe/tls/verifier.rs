//! How certificates are judged.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{VerifierBuilderError, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::expiry::not_after;

/// Judges by the roots trusted, and by the very certificates in the CA file: a self-signed
/// certificate that is its own CA, as `openssl req -x509` makes it, is accepted if it is the one in
/// the file. (webpki refuses a CA as a server's certificate. Of such a one the name is checked, not
/// the dates.)
#[derive(Debug)]
pub struct Judge {
    roots: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
    /// The chain judged last, and what was wrong with it. A judge has one target and one name.
    last: Mutex<Option<(Vec<CertificateDer<'static>>, Option<String>)>>,
    /// When the certificate shown last expires, if that is known.
    shown: Mutex<Option<Timestamp>>,
}

impl Judge {
    pub fn new(
        roots: Arc<RootCertStore>,
        pinned: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        Ok(Self {
            roots: WebPkiServerVerifier::builder_with_provider(roots, provider).build()?,
            pinned,
            last: Mutex::default(),
            shown: Mutex::default(),
        })
    }

    /// What is wrong with a chain for the server of this name; `None`: nothing.
    ///
    /// The last chain's result is kept, because checking signatures costs as much as the rest of a
    /// resumed handshake. A judge lives for a minute, so an expiry is found that much later.
    pub fn problem(&self, chain: &[CertificateDer<'_>], name: &ServerName<'_>) -> Option<String> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((judged, problem)) if judged.as_slice() == chain => problem.clone(),
            _ => {
                let problem = self.judge(chain, name).err().map(|error| match error {
                    rustls::Error::InvalidCertificate(problem) => problem.to_string(),
                    other => other.to_string(),
                });
                let chain = chain.iter().map(|one| one.clone().into_owned()).collect();
                *last = Some((chain, problem.clone()));
                problem
            }
        }
    }

    /// When the certificate expires that was shown in the last handshake, be it refused.
    pub fn shown(&self) -> Option<Timestamp> {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
    ) -> Result<(), rustls::Error> {
        let (own, intermediates) = chain
            .split_first()
            .ok_or(rustls::Error::NoCertificatesPresented)?;
        self.verify_server_cert(own, intermediates, name, &[], UnixTime::now())
            .map(drop)
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = not_after(own);
        let result = self
            .roots
            .verify_server_cert(own, intermediates, name, ocsp, now);
        match result {
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_)))
                if self.pinned.contains(own) =>
            {
                verify_server_name(&ParsedCertificate::try_from(own)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.roots
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.roots
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.roots.supported_verify_schemes()
    }
}

/// Accepts any certificate, but insists that the peer owns it.
#[derive(Debug)]
pub struct Lenient {
    algorithms: WebPkiSupportedAlgorithms,
}

impl Lenient {
    pub fn new(provider: &CryptoProvider) -> Self {
        Self {
            algorithms: provider.signature_verification_algorithms,
        }
    }
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        _own: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
