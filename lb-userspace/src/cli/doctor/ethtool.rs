//! A device's offloads, by the ethtool ioctl.

use std::io;
use std::os::fd::AsRawFd;

/// Requests of `SIOCETHTOOL` that answer with one number (linux/ethtool.h).
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum Get {
    TxChecksum = 0x16,
    Flags = 0x25,
    Gro = 0x2b,
}

const SIOCETHTOOL: u64 = 0x8946;
/// Bit of `Get::Flags`.
const FLAG_LRO: u32 = 1 << 15;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Offloads that matter to XDP; `None` where the driver does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    pub lro: Option<bool>,
    pub gro: Option<bool>,
    pub tx_checksum: Option<bool>,
}

/// Asks about an interface of this network namespace.
pub fn offloads(interface: &str) -> io::Result<Offloads> {
    // Any socket carries the ioctl.
    let socket = std::net::UdpSocket::bind(("127.0.0.1", 0))
        .or_else(|_| std::net::UdpSocket::bind(("::1", 0)))?;
    Ok(Offloads {
        lro: get(&socket, interface, Get::Flags)?.map(|flags| flags & FLAG_LRO != 0),
        gro: get(&socket, interface, Get::Gro)?.map(|on| on != 0),
        tx_checksum: get(&socket, interface, Get::TxChecksum)?.map(|on| on != 0),
    })
}

fn get(socket: &impl AsRawFd, interface: &str, what: Get) -> io::Result<Option<u32>> {
    let mut value = Value {
        command: what as u32,
        data: 0,
    };
    let mut name = [0; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: (&raw mut value).cast(),
        },
    };
    // SAFETY: the request holds a nul-terminated name and points to a `struct ethtool_value`, which
    // is all that these commands read and write; both outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if result == 0 {
        return Ok(Some(value.data));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => Ok(None),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_answers_and_nonsense_is_an_error() {
        let offloads = offloads("lo").unwrap();
        assert!(offloads.gro.is_some(), "every device has GRO: {offloads:?}");
        for name in ["no-such-if0", "a-name-that-is-far-too-long"] {
            let error = super::offloads(name).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        }
    }
}
