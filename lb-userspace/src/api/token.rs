//! The token that detailed answers are given for, where one is configured.

use std::io;
use std::path::{Path, PathBuf};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use subtle::ConstantTimeEq;
use thiserror::Error;
use tokio::sync::watch;

/// A bearer token (RFC 6750), read from its file.
pub struct Token(Vec<u8>);

/// The token cannot be had.
#[derive(Debug, Error)]
pub enum TokenError {
    #[error(
        "node.http_token_file {path}: {source}; it must be readable by root's plain permissions"
    )]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "node.http_token_file {path}: its first line is not a token: at least 16 letters, digits or \
         -._~+/= and nothing else; `openssl rand -hex 32` makes one"
    )]
    Malformed { path: PathBuf },
}

/// Shorter ones could be tried out.
const SHORTEST: usize = 16;

impl Token {
    /// Reads the first line of a file.
    ///
    /// # Errors
    /// [`TokenError`]: the file cannot be read, or holds no token.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let text = std::fs::read_to_string(path).map_err(|source| TokenError::Read {
            path: path.to_owned(),
            source,
        })?;
        let line = text.lines().next().unwrap_or_default();
        // The characters of RFC 6750, section 2.1.
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        if line.len() < SHORTEST || !line.bytes().all(fits) {
            return Err(TokenError::Malformed {
                path: path.to_owned(),
            });
        }
        Ok(Self(line.as_bytes().to_vec()))
    }

    /// Whether these headers carry it. How long that takes tells nothing of it but its length.
    fn is_in(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(AUTHORIZATION) else {
            return false;
        };
        let Some((scheme, given)) = value.as_bytes().split_at_checked("Bearer ".len()) else {
            return false;
        };
        scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(given.ct_eq(&self.0))
    }
}

/// It must not be shown.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// The token in force; `None`: detailed answers are for everybody.
pub type Wanted = watch::Receiver<Option<std::sync::Arc<Token>>>;

/// Whether whoever sends these headers may have detailed answers.
pub fn allows(wanted: &Wanted, headers: &HeaderMap) -> bool {
    let token = wanted.borrow();
    token.as_ref().is_none_or(|token| token.is_in(headers))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Token, TokenError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Token::read(file.path())
    }

    #[test]
    fn the_token_is_the_first_line() {
        let token = read("0123456789abcdef\nnot this\n").unwrap();
        let carried = |value: &'static [u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, http::HeaderValue::from_bytes(value).unwrap());
            token.is_in(&headers)
        };
        assert!(carried(b"Bearer 0123456789abcdef"));
        assert!(carried(b"bearer 0123456789abcdef"), "schemes have no case");
        for wrong in [
            &b"Bearer 0123456789abcdeF"[..],
            b"Bearer 0123456789abcde",
            b"Bearer 0123456789abcdef0",
            b"Bearer ",
            b"Basic 0123456789abcdef",
            b"0123456789abcdef",
            b"",
            b"\xff",
        ] {
            assert!(!carried(wrong), "{wrong:?}");
        }
        assert!(!token.is_in(&HeaderMap::new()));
        assert!(!format!("{token:?}").contains("0123"));
    }

    #[test]
    fn what_is_no_token_is_refused_by_name() {
        for text in ["", "\n", "short", "0123456789 abcdef", "0123456789äbcdef"] {
            let error = read(text).unwrap_err();
            assert!(
                matches!(error, TokenError::Malformed { .. }),
                "{text:?}: {error}"
            );
        }
        let error = Token::read(Path::new("/nonexistent/token"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("node.http_token_file /nonexistent/token: No such file"),
            "{error}"
        );
    }
}
