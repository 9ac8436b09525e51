//! Keys that were offered and not needed.
//!
//! A hello that offers TLS 1.3 has a public key in it. A server that answers it by TLS 1.2 and resumes
//! a session exchanges no keys, so nothing was ever encrypted by what follows from the private one.
//! Such a pair goes into a later hello; one that has served in an exchange is gone with it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::crypto::ring::kx_group::SECP256R1;
use rustls::crypto::{ActiveKeyExchange, SharedSecret, SupportedKxGroup};
use rustls::{Error, NamedGroup, ProtocolVersion};

/// Pairs kept at most, about as many as there are handshakes at a time.
const KEPT: usize = 64;

/// P-256. One for all targets: a public key says nothing of who offers it.
pub static P256: Thrifty = Thrifty {
    group: SECP256R1,
    spare: &SPARE_P256,
};
static SPARE_P256: Spare = Spare(Mutex::new(Vec::new()));

type Pair = Box<dyn ActiveKeyExchange>;

struct Spare(Mutex<Vec<Pair>>);

impl Spare {
    fn lock(&self) -> MutexGuard<'_, Vec<Pair>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Spare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the keys.
        f.write_str("Spare")
    }
}

/// A group that makes a pair only where none is spare.
#[derive(Debug)]
pub struct Thrifty {
    group: &'static dyn SupportedKxGroup,
    spare: &'static Spare,
}

impl SupportedKxGroup for Thrifty {
    fn start(&self) -> Result<Pair, Error> {
        let spare = self.spare.lock().pop();
        let pair = match spare {
            Some(pair) => pair,
            None => self.group.start()?,
        };
        Ok(Box::new(Offered {
            public: pair.pub_key().to_vec(),
            group: pair.group(),
            pair: Some(pair),
            spare: self.spare,
        }))
    }

    fn name(&self) -> NamedGroup {
        self.group.name()
    }

    fn fips(&self) -> bool {
        self.group.fips()
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        self.group.usable_for_version(version)
    }
}

/// A pair in a hello.
struct Offered {
    public: Vec<u8>,
    group: NamedGroup,
    /// Until it serves.
    pair: Option<Pair>,
    spare: &'static Spare,
}

impl ActiveKeyExchange for Offered {
    fn complete(mut self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        match self.pair.take() {
            Some(pair) => pair.complete(peer),
            None => Err(Error::General("a key has served already".to_owned())),
        }
    }

    fn pub_key(&self) -> &[u8] {
        &self.public
    }

    fn group(&self) -> NamedGroup {
        self.group
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        if let Some(pair) = self.pair.take() {
            let mut spare = self.spare.lock();
            if spare.len() < KEPT {
                spare.push(pair);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One whose spare pairs nobody else takes.
    fn group() -> Thrifty {
        Thrifty {
            group: SECP256R1,
            spare: Box::leak(Box::new(Spare(Mutex::default()))),
        }
    }

    #[test]
    fn a_key_that_was_not_needed_is_offered_again_and_one_that_served_is_not() {
        let group = group();
        let offered = group.start().unwrap();
        let first = offered.pub_key().to_vec();
        drop(offered);

        let again = group.start().unwrap();
        assert_eq!(again.pub_key(), first);
        assert_eq!(again.group(), NamedGroup::secp256r1);
        let server = SECP256R1.start().unwrap();
        let of_server = server.pub_key().to_vec();
        let own = again.complete(&of_server).unwrap();
        let other = server.complete(&first).unwrap();
        assert_eq!(own.secret_bytes(), other.secret_bytes());
        assert_ne!(group.start().unwrap().pub_key(), first);

        let refused = group.start().unwrap();
        let second = refused.pub_key().to_vec();
        assert!(refused.complete(b"no key").is_err());
        assert_ne!(group.start().unwrap().pub_key(), second);
    }

    #[test]
    fn two_hellos_at_a_time_have_two_keys_and_few_are_kept() {
        let group = group();
        let many: Vec<_> = (0..KEPT + 3).map(|_| group.start().unwrap()).collect();
        let mut keys: Vec<_> = many.iter().map(|key| key.pub_key().to_vec()).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), KEPT + 3);
        drop(many);
        assert_eq!(group.spare.lock().len(), KEPT);
    }
}
