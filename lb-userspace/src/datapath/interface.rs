//! What the kernel says of an interface and the XDP program on it, over netlink.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use futures::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec};
use thiserror::Error;

/// The interface could not be asked about or changed.
#[derive(Debug, Error)]
pub enum InterfaceError {
    #[error("no interface {0}; `ip link` lists those of this host and namespace")]
    Missing(String),
    #[error("netlink: {0}")]
    Io(#[from] io::Error),
    #[error("netlink: {0}")]
    Netlink(#[from] rtnetlink::Error),
}

/// An interface, and the XDP program attached to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub program: Option<AttachedProgram>,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachedProgram {
    pub id: u32,
    pub native: bool,
}

/// Asks about the interface `name`.
pub fn query(name: &str) -> Result<Interface, InterfaceError> {
    with_netlink(async |handle| {
        let mut links = handle.link().get().match_name(name.to_owned()).execute();
        match links.try_next().await {
            Ok(Some(link)) => Ok(interface(&link)),
            Ok(None) => Err(InterfaceError::Missing(name.to_owned())),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => {
                Err(InterfaceError::Missing(name.to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    })
}

/// Addresses of an interface.
pub fn addresses(index: u32) -> Result<BTreeSet<IpAddr>, InterfaceError> {
    with_netlink(async |handle| {
        let mut found = BTreeSet::new();
        let mut dump = handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute();
        while let Some(message) = dump.try_next().await? {
            let mut local = None;
            let mut other = None;
            for attribute in &message.attributes {
                match attribute {
                    // Of a point-to-point link `Address` is the peer's.
                    AddressAttribute::Local(ip) => local = Some(*ip),
                    AddressAttribute::Address(ip) => other = Some(*ip),
                    _ => {}
                }
            }
            found.extend(local.or(other));
        }
        Ok(found)
    })
}

/// Takes off a program that was attached over netlink rather than by a link.
pub fn clear(index: u32) -> Result<(), InterfaceError> {
    with_netlink(async |handle| {
        let off = vec![LinkXdp::Fd(-1)];
        let message = LinkMessageBuilder::<LinkUnspec>::new()
            .index(index)
            .append_extra_attribute(LinkAttribute::Xdp(off))
            .build();
        Ok(handle.link().set(message).execute().await?)
    })
}

fn interface(link: &LinkMessage) -> Interface {
    let xdp = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Xdp(xdp) => Some(xdp),
            _ => None,
        });
    let attributes = || xdp.into_iter().flatten();
    let id = attributes().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) if *id != 0 => Some(*id),
        _ => None,
    });
    let native = attributes().any(|attribute| {
        matches!(
            attribute,
            LinkXdp::Attached(XdpAttached::Driver | XdpAttached::Hardware)
        )
    });
    Interface {
        index: link.header.index,
        program: id.map(|id| AttachedProgram { id, native }),
    }
}

/// Runs one netlink dialogue. The datapath's thread has no runtime of its own.
fn with_netlink<T>(
    dialogue: impl AsyncFnOnce(Handle) -> Result<T, InterfaceError>,
) -> Result<T, InterfaceError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let result = dialogue(handle).await;
        connection.abort();
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_and_nonsense_is_not() {
        assert_eq!(query("lo").unwrap().index, 1);
        assert!(matches!(
            query("no-such-if0"),
            Err(InterfaceError::Missing(_))
        ));
    }
}
