//! The system calls that no crate wraps: a TUN device, and frames out of a packet socket.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use lb_common::abi::Hop;
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The kernel puts a number for `%d`.
const NAME: &[u8] = b"lb-probe%d\0";

/// Opens a TUN device of its own: whole IP packets, none other. Gives its name, too. It takes
/// `CAP_NET_ADMIN`.
///
/// # Errors
/// The kernel's; without the module `tun` there is no such file.
pub fn open_tun() -> io::Result<(AsyncFd<File>, String)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    // SAFETY: plain integers and arrays, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one ifreq.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let name = request.ifr_name.iter().map(|byte| byte.cast_unsigned());
    let name = name.take_while(|byte| *byte != 0).collect();
    let name = String::from_utf8(name).map_err(io::Error::other)?;
    // SAFETY: a `File` gives the same descriptor each time and keeps it open until it is dropped.
    let file = unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) };
    Ok((file.map_err(io::Error::from)?, name))
}

/// Asks the TUN driver for its features, which makes no device.
///
/// # Errors
/// As of [`open_tun`], but for what that needs a capability for.
pub fn try_tun() -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut features: libc::c_uint = 0;
    // SAFETY: the descriptor is open, and TUNGETFEATURES writes one number.
    let result = unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            libc::TUNGETFEATURES as _,
            &raw mut features,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends IP packets to next hops that the caller names, past routing.
#[derive(Debug)]
pub struct PacketSocket(Socket);

impl PacketSocket {
    /// It receives nothing. It takes `CAP_NET_RAW`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        // Protocol 0: no packets come in (packet(7)).
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// Sends one packet, from its IP header on.
    ///
    /// # Errors
    /// The kernel's: the interface has gone or is down.
    pub fn send(&self, packet: &[u8], hop: &Hop) -> io::Result<()> {
        let ethertype = match packet.first() {
            Some(first) if first >> 4 == 6 => libc::ETH_P_IPV6,
            _ => libc::ETH_P_IP,
        };
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: `sockaddr_ll` is one of the kinds of address that the storage is for.
        let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
        link.sll_family = libc::AF_PACKET as u16;
        link.sll_protocol = (ethertype as u16).to_be();
        link.sll_ifindex = hop.ifindex.cast_signed();
        link.sll_halen = 6;
        link.sll_addr[..6].copy_from_slice(&hop.dst_mac());
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the storage holds an address of this length.
        let to = unsafe { SockAddr::new(storage, length) };
        self.0.send_to(packet, &to).map(drop)
    }
}
