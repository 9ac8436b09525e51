//! The rule and the routes that lead marked packets into the device.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteScope};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Error, Handle, LinkUnspec, RouteMessageBuilder};
use thiserror::Error as ThisError;

/// The mark of these probes' packets. Its bits are not those that Kubernetes (0x4000, 0x8000),
/// Cilium (0xf00), Calico (0xffff0000) and Tailscale (0xff0000) look at.
pub const MARK: u32 = 0x6c;
/// Number of the table.
pub const TABLE: u32 = 27_746;
/// Before the rules by source address that hosts with several uplinks have.
pub const PRIORITY: u32 = 108;

/// Routing cannot be set.
#[derive(Debug, ThisError)]
pub enum RouteError {
    #[error("netlink: {0}")]
    Io(#[from] io::Error),
    #[error("netlink: {0}")]
    Netlink(#[from] Error),
}

/// A connection to the kernel's routing; its task ends with it.
struct Kernel {
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Kernel {
    fn connect() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let task = tokio::spawn(connection);
        Ok(Self { handle, task })
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sets the device's longest packet and its state; gives its number.
pub async fn set_up(name: &str, mtu: u32) -> Result<u32, RouteError> {
    let kernel = Kernel::connect()?;
    let mut links = kernel
        .handle
        .link()
        .get()
        .match_name(name.to_owned())
        .execute();
    let Some(link) = links.try_next().await? else {
        return Err(io::Error::from(io::ErrorKind::NotFound).into());
    };
    let index = link.header.index;
    let wanted = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
    kernel.handle.link().set(wanted).execute().await?;
    Ok(index)
}

/// Leads marked packets to `vip` into the interface with this number.
pub async fn lead(vip: IpAddr, interface: u32) -> Result<(), RouteError> {
    let kernel = Kernel::connect()?;
    let rule = kernel
        .handle
        .rule()
        .add()
        .fw_mark(MARK)
        .table_id(TABLE)
        .priority(PRIORITY)
        .action(RuleAction::ToTable);
    let added = match vip {
        IpAddr::V4(_) => rule.v4().execute().await,
        IpAddr::V6(_) => rule.v6().execute().await,
    };
    match added {
        // An agent before this one has left it.
        Err(Error::NetlinkError(error)) if error.to_io().raw_os_error() == Some(libc::EEXIST) => {}
        other => other?,
    }
    let route = match vip {
        IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(v4, 32)
            .table_id(TABLE)
            .scope(RouteScope::Link)
            .output_interface(interface)
            .build(),
        IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(v6, 128)
            .table_id(TABLE)
            .output_interface(interface)
            .build(),
    };
    kernel.handle.route().add(route).replace().execute().await?;
    Ok(())
}

/// Removes the rules, unless another agent's routes stand in the table.
///
/// # Errors
/// The kernel cannot be asked, or refuses. There being none is no error.
pub async fn remove_rules() -> Result<(), RouteError> {
    let kernel = Kernel::connect()?;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut wanted = RouteMessage::default();
        wanted.header.address_family = family;
        let mut routes = kernel.handle.route().get(wanted).execute();
        let mut in_use = false;
        while let Some(route) = routes.try_next().await? {
            let table = RouteAttribute::Table(TABLE);
            in_use |= route.attributes.contains(&table);
        }
        if in_use {
            continue;
        }
        let mut rule = RuleMessage::default();
        rule.header.family = family;
        rule.header.action = RuleAction::ToTable;
        rule.attributes = vec![
            RuleAttribute::FwMark(MARK),
            RuleAttribute::Table(TABLE),
            RuleAttribute::Priority(PRIORITY),
        ];
        match kernel.handle.rule().del(rule).execute().await {
            Err(Error::NetlinkError(error))
                if matches!(
                    error.to_io().raw_os_error(),
                    Some(libc::ENOENT | libc::EAFNOSUPPORT)
                ) => {}
            other => other?,
        }
    }
    Ok(())
}
