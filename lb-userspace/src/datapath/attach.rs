//! The program's place on the interfaces: attached by links that are pinned, so that the next agent
//! replaces the program without a packet lost.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::programs::{ProgramError, Xdp, loaded_programs};
use thiserror::Error;
use tracing::{info, warn};

use super::PROGRAM;
use super::interface::{self, AttachedProgram, InterfaceError};
use super::pin::{PinDirectory, PinError, c_path};
use super::sys::{self, XdpLink};
use crate::model::XdpMode;

/// Why the program could not be attached to an interface.
#[derive(Debug, Error)]
pub enum AttachError {
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    #[error(
        "another XDP program is on {interface}: {program} (id {id}). {}",
        occupied(interface, program, *id)
    )]
    Occupied {
        interface: String,
        program: String,
        id: u32,
    },
    #[error(
        "another XDP program is on {interface}: {program} (id {id}). Take it off first \
         (`ip link set dev {interface} xdp off`), or use a tunnel device of the kernel"
    )]
    Taken {
        interface: String,
        program: String,
        id: u32,
    },
    #[error(
        "{interface}: the kernel refuses the program in {mode} mode: {source}. \
         `lb doctor` tells what the driver needs"
    )]
    Refused {
        interface: String,
        mode: &'static str,
        source: io::Error,
    },
    #[error("{interface}: {what}: {source}")]
    System {
        interface: String,
        what: &'static str,
        source: io::Error,
    },
    #[error("{interface}: {source}")]
    NotLoaded {
        interface: String,
        source: Box<ProgramError>,
    },
    #[error(transparent)]
    Pin(#[from] PinError),
}

/// An interface that the program is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub name: String,
    pub index: u32,
    /// In the driver, rather than in the kernel's generic path.
    pub native: bool,
    /// Attached anew, rather than adopted from an agent before this one.
    pub new: bool,
}

/// Attaches the program to `name`, or puts it in the place of its predecessor there.
pub fn attach(
    program: &Xdp,
    pins: &PinDirectory,
    name: &str,
    mode: XdpMode,
    replace: bool,
) -> Result<Attached, AttachError> {
    let found = interface::query(name)?;
    if update(program, pins, name, found.index)? {
        let native = interface::query(name)?
            .program
            .is_some_and(|program| program.native);
        return Ok(Attached {
            name: name.to_owned(),
            index: found.index,
            native,
            new: false,
        });
    }
    if let Some(other) = found.program {
        let known = program_name(other.id);
        if !replace {
            return Err(AttachError::Occupied {
                interface: name.to_owned(),
                program: known,
                id: other.id,
            });
        }
        warn!(
            interface = name,
            program = known,
            id = other.id,
            "replacing another XDP program"
        );
        take_off(name, found.index, other)?;
    }
    let native = attach_new(program, pins, name, found.index, mode)?;
    Ok(Attached {
        name: name.to_owned(),
        index: found.index,
        native,
        new: true,
    })
}

/// Replaces the program on the pinned link of an interface; false if there is none that lives.
fn update(program: &Xdp, pins: &PinDirectory, name: &str, index: u32) -> Result<bool, AttachError> {
    let system = |what| system(name, what);
    let Some(link) = open(pins, name)? else {
        return Ok(false);
    };
    let info = link
        .info()
        .map_err(system("asking about the pinned link"))?;
    if info.is_none_or(|info| info.ifindex != index) {
        // The interface was removed, and perhaps made again under the same name.
        info!(
            interface = name,
            "the pinned link's interface is gone; attaching anew"
        );
        std::fs::remove_file(pins.link(name)).map_err(system("removing a dead link's pin"))?;
        return Ok(false);
    }
    link.update(fd(program, name)?)
        .map_err(system("replacing the program"))?;
    Ok(true)
}

/// Puts a program that was there before back on the pinned link of an interface.
pub fn put_back(pins: &PinDirectory, name: &str, program: &OwnedFd) -> Result<(), AttachError> {
    let Some(link) = open(pins, name)? else {
        return Ok(());
    };
    link.update(program.as_fd())
        .map_err(system(name, "putting the old program back"))
}

fn attach_new(
    program: &Xdp,
    pins: &PinDirectory,
    name: &str,
    index: u32,
    mode: XdpMode,
) -> Result<bool, AttachError> {
    let (link, native) = create(program, name, index, mode)?;
    link.pin(&c_path(&pins.link(name))?)
        .map_err(system(name, "pinning the link"))?;
    Ok(native)
}

/// Attaches a program for as long as the link lives; whether in the driver.
pub fn create(
    program: &Xdp,
    name: &str,
    index: u32,
    mode: XdpMode,
) -> Result<(XdpLink, bool), AttachError> {
    let create = |native: bool| {
        XdpLink::create(fd(program, name)?, index, native).map_err(|source| AttachError::Refused {
            interface: name.to_owned(),
            mode: if native { "native" } else { "generic" },
            source,
        })
    };
    Ok(match mode {
        XdpMode::Native => (create(true)?, true),
        XdpMode::Generic => (create(false)?, false),
        XdpMode::Auto => match create(true) {
            Ok(link) => (link, true),
            Err(error) => {
                warn!("{error}; using generic mode, which is several times slower");
                (create(false)?, false)
            }
        },
    })
}

/// What to do about a program that is there already.
fn occupied(interface: &str, program: &str, id: u32) -> String {
    if program == PROGRAM {
        return "It is that of another agent of lb, or of one that had another \
                node.control_socket: end that with `lb detach --socket PATH` and its path, or \
                start with --replace to have the program replaced"
            .to_owned();
    }
    format!(
        "To keep it, have lb call it for what is not for a service: \
         `bpftool prog pin id {id} /sys/fs/bpf/other`, take it off \
         (`ip link set dev {interface} xdp off`), and set node.chain = \"/sys/fs/bpf/other\". \
         To be rid of it, take it off, or start with --replace to have it replaced"
    )
}

/// Takes the program off an interface.
pub fn detach(pins: &PinDirectory, name: &str) -> Result<(), AttachError> {
    let Some(link) = open(pins, name)? else {
        return Ok(());
    };
    take_down(&link).map_err(system(name, "taking the program off"))?;
    std::fs::remove_file(pins.link(name)).map_err(system(name, "removing the link's pin"))
}

/// Takes another's program off an interface: by its link, or over netlink where it has none.
fn take_off(name: &str, index: u32, other: AttachedProgram) -> Result<(), AttachError> {
    let system = |what| system(name, what);
    let mut id = 0;
    while let Some(next) = sys::next_link(id).map_err(system("listing links"))? {
        id = next;
        let link = match XdpLink::by_id(id) {
            Ok(link) => link,
            // It has ended since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(system("opening a link")(error)),
        };
        let info = link.info().map_err(system("asking about a link"))?;
        if info.is_some_and(|info| info.ifindex == index && info.program == other.id) {
            return take_down(&link).map_err(system("taking the other program off"));
        }
    }
    Ok(interface::clear(index)?)
}

fn take_down(link: &XdpLink) -> io::Result<()> {
    match link.detach() {
        // The interface is gone.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
        other => other,
    }
}

fn open(pins: &PinDirectory, name: &str) -> Result<Option<XdpLink>, AttachError> {
    match XdpLink::open(&c_path(&pins.link(name))?) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(system(name, "opening the pinned link")(error)),
    }
}

fn fd<'a>(program: &'a Xdp, name: &str) -> Result<BorrowedFd<'a>, AttachError> {
    let program = program.fd().map_err(|source| AttachError::NotLoaded {
        interface: name.to_owned(),
        source: Box::new(source),
    })?;
    Ok(program.as_fd())
}

/// Name of a loaded program.
pub fn program_name(id: u32) -> String {
    let name = loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned));
    name.filter(|name| !name.is_empty())
        .unwrap_or_else(|| "of no name".to_owned())
}

fn system(name: &str, what: &'static str) -> impl FnOnce(io::Error) -> AttachError {
    let interface = name.to_owned();
    move |source| AttachError::System {
        interface,
        what,
        source,
    }
}
