//! The place of the control socket: one agent at a time, whatever became of the last one.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;
use tokio::net::UnixListener;

use crate::private;

/// Where the agent listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/lb/lb.sock";

/// Owner and group may connect.
const MODE: u32 = 0o660;

/// Why there is no control socket.
#[derive(Debug, Error)]
pub enum SocketError {
    #[error(
        "another agent{} has the socket {path}; stop it first, or give this one its own {key}",
        pid.as_ref().map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    Taken {
        key: &'static str,
        path: String,
        pid: Option<String>,
    },
    #[error("{path} is not a socket; remove it, or choose another {key}")]
    NotASocket { key: &'static str, path: String },
    #[error("{key} {path}: {what}: {source}")]
    Io {
        key: &'static str,
        path: String,
        what: &'static str,
        source: io::Error,
    },
}

/// A bound socket of the agent. The socket is removed when it is dropped.
#[derive(Debug)]
pub struct Listener {
    pub(super) socket: UnixListener,
    /// The key of the configuration that names its path.
    pub(super) key: &'static str,
    path: PathBuf,
    /// Held locked for as long as this agent lives; the kernel lets go of it when it dies, however
    /// it dies. The file stays: removing it would let two agents lock two files of one name.
    _lock: File,
}

impl Listener {
    /// Takes `path`, which `key` of the configuration names, for this agent. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// [`SocketError`]: another agent has it, something else is there, or the kernel refuses.
    pub fn bind(path: &Path, key: &'static str) -> Result<Self, SocketError> {
        let failed = |what| {
            move |source| SocketError::Io {
                key,
                path: path.display().to_string(),
                what,
                source,
            }
        };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed("making its directory"))?;
        }
        let lock = lock(path, key)?;
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::NotASocket {
                    key,
                    path: path.display().to_string(),
                });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("looking for an old one")(error)),
        }
        // Bound under another name and moved into place when its mode is right, so that there is
        // no moment with the wrong mode and none without a socket.
        let new = beside(path, ".new");
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("removing a left-over")(error));
            }
            _ => {}
        }
        let socket = UnixListener::bind(&new).map_err(failed("binding"))?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(MODE))
            .and_then(|()| std::fs::rename(&new, path))
            .map_err(failed("putting it in place"))?;
        Ok(Self {
            socket,
            key,
            path: path.to_owned(),
            _lock: lock,
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("removing {}: {error}", self.path.display());
        }
    }
}

/// Locks the file that says whose socket it is, and puts our process id in it.
fn lock(path: &Path, key: &'static str) -> Result<File, SocketError> {
    let failed = |source| SocketError::Io {
        key,
        path: path.display().to_string(),
        what: "locking",
        source,
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).truncate(false);
    let mut file = private::open(&mut options, &beside(path, ".lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Only to help: without it the message just names no process.
            let read = file.take(16).read_to_string(&mut pid);
            let pid = pid.trim();
            let known = read.is_ok() && !pid.is_empty();
            return Err(SocketError::Taken {
                key,
                path: path.display().to_string(),
                pid: known.then(|| pid.to_owned()),
            });
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    file.set_len(0).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_agents_socket_is_replaced_and_a_live_ones_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/lb.sock");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "left behind");

        let first = Listener::bind(&path, "node.control_socket").unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        let error = Listener::bind(&path, "node.control_socket").unwrap_err();
        let wanted = format!("another agent (pid {})", std::process::id());
        assert!(error.to_string().contains(&wanted), "{error}");
        assert!(tokio::net::UnixStream::connect(&path).await.is_ok());

        drop(first);
        assert!(!path.exists());
        Listener::bind(&path, "node.control_socket").unwrap();
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lb.sock");
        std::fs::write(&path, "precious").unwrap();
        let error = Listener::bind(&path, "node.control_socket").unwrap_err();
        assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
