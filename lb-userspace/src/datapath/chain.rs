//! The program that gets what is left to the host (`node.chain`): the one place of the map `CHAIN`,
//! which `lb_xdp` tail-calls instead of passing a packet.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use thiserror::Error;
use tracing::{info, warn};

use super::pin::{PinError, c_path};
use super::sys;

/// The only place of the map.
const PLACE: u32 = 0;

/// Why packets cannot be handed to another program.
#[derive(Debug, Error)]
pub enum ChainError {
    #[error(
        "node.chain: nothing is pinned at {0}. Pin the program there \
         (`bpftool prog pin id ID {0}`), or take `chain` out of the configuration"
    )]
    Missing(PathBuf),
    #[error(
        "node.chain: {path} is {what}, not an XDP program. Pin the program itself \
         (`bpftool prog show`, then `bpftool prog pin id ID PATH`)"
    )]
    NotProgram { path: PathBuf, what: String },
    #[error("node.chain: {0} is this agent's own program, which would call itself. Name another")]
    Own(PathBuf),
    #[error(
        "node.chain: the kernel refuses to put {path} behind lb's program: {source}. A program \
         that is tail-called must be loaded like the one that calls it: compiled by the JIT, \
         without the frags flag (in libbpf the section \"xdp\", not \"xdp.frags\"), with the attach \
         type BPF_XDP (libbpf's default), not bound to a device and no extension of a dispatcher"
    )]
    Refused { path: PathBuf, source: io::Error },
    #[error("node.chain: {path}: {what}: {source}")]
    System {
        path: PathBuf,
        what: &'static str,
        source: io::Error,
    },
    #[error("node.chain: the map CHAIN: {0}")]
    Map(#[source] io::Error),
    #[error("node.chain: asking about lb's own program: {0}")]
    Asking(#[source] io::Error),
    #[error(transparent)]
    Pin(#[from] PinError),
}

/// The map, of which packets see each change whole.
pub struct Chain {
    map: OwnedFd,
    /// The program that this agent has put there, and its number.
    current: Option<(OwnedFd, u32)>,
}

/// What was there before, to be put back if what goes with it fails.
#[must_use]
pub enum Before {
    Nothing,
    Program(OwnedFd, u32),
    /// Another agent's, which cannot be opened without CAP_SYS_ADMIN.
    Unknown,
}

impl Chain {
    /// Takes the map `CHAIN`.
    pub fn new(map: OwnedFd) -> Self {
        Self { map, current: None }
    }

    /// Hands packets to the program pinned at `path` from now on, or to none. `own` is the number
    /// of the calling program.
    pub fn set(&mut self, path: Option<&Path>, own: u32) -> Result<Before, ChainError> {
        let program = path.map(|path| open(path, own)).transpose()?;
        let before = self.before().map_err(ChainError::Map)?;
        let (Some(path), Some((program, id))) = (path, program) else {
            self.clear()?;
            return Ok(before);
        };
        sys::set_program(self.map.as_fd(), PLACE, program.as_fd()).map_err(|source| {
            ChainError::Refused {
                path: path.to_owned(),
                source,
            }
        })?;
        info!(program = id, pin = %path.display(), "what is left to the host goes to another program");
        self.current = Some((program, id));
        Ok(before)
    }

    /// Puts back what was there.
    pub fn restore(&mut self, before: Before) -> Result<(), ChainError> {
        match before {
            Before::Nothing => self.clear(),
            Before::Program(program, id) => {
                sys::set_program(self.map.as_fd(), PLACE, program.as_fd())
                    .map_err(ChainError::Map)?;
                self.current = Some((program, id));
                Ok(())
            }
            Before::Unknown => {
                warn!("node.chain: the program chained before cannot be put back");
                Ok(())
            }
        }
    }

    fn before(&mut self) -> io::Result<Before> {
        let Some(id) = sys::program_in(self.map.as_fd(), PLACE)? else {
            return Ok(Before::Nothing);
        };
        if let Some((program, known)) = self.current.take()
            && known == id
        {
            return Ok(Before::Program(program, id));
        }
        match sys::program_by_id(id) {
            Ok(program) => Ok(Before::Program(program, id)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(Before::Unknown),
            Err(error) => Err(error),
        }
    }

    fn clear(&mut self) -> Result<(), ChainError> {
        self.current = None;
        match sys::map_delete(self.map.as_fd(), PLACE) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ChainError::Map(error)),
            _ => Ok(()),
        }
    }
}

/// Opens a pinned XDP program; also gives its number.
fn open(path: &Path, own: u32) -> Result<(OwnedFd, u32), ChainError> {
    let system = |what| {
        move |source| ChainError::System {
            path: path.to_owned(),
            what,
            source,
        }
    };
    let pinned = match sys::open_pin(&c_path(path)?) {
        Ok(pinned) => pinned,
        Err(error) => {
            return Err(match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => ChainError::Missing(path.to_owned()),
                // A file that is on no BPF file system.
                Some(libc::EINVAL | libc::EACCES) if path.exists() => ChainError::NotProgram {
                    path: path.to_owned(),
                    what: "no pin of the BPF file system".to_owned(),
                },
                _ => system("opening the pin")(error),
            });
        }
    };
    let kind = std::fs::read_link(format!("/proc/self/fd/{}", pinned.as_raw_fd()))
        .map_err(system("asking what is pinned"))?;
    let kind = kind.to_string_lossy();
    let kind = kind.trim_start_matches("anon_inode:");
    if kind != "bpf-prog" {
        return Err(ChainError::NotProgram {
            path: path.to_owned(),
            what: format!("a {}", kind.replace(['-', '_'], " ").replace("bpf", "BPF")),
        });
    }
    let info = sys::program_info(pinned.as_fd()).map_err(system("asking about the program"))?;
    if info.kind != sys::XDP {
        return Err(ChainError::NotProgram {
            path: path.to_owned(),
            what: format!("a BPF program of type {} (linux/bpf.h)", info.kind),
        });
    }
    if info.id == own {
        return Err(ChainError::Own(path.to_owned()));
    }
    Ok((pinned, info.id))
}
