//! The interfaces of this namespace, over rtnetlink.

use std::path::Path;

use anyhow::Context;
use futures::TryStreamExt;
use rtnetlink::packet_route::link::{
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached,
};

use super::ethtool::{self, Offloads};

/// What is known of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub name: String,
    pub index: u32,
    pub up: bool,
    /// A cable, or its like.
    pub carrier: bool,
    pub loopback: bool,
    pub mtu: u32,
    /// rtnetlink kind, such as `veth`; absent for hardware.
    pub kind: Option<String>,
    /// Driver of the hardware.
    pub driver: Option<String>,
    /// Index of the other end of a veth, if that is in this namespace.
    pub peer: Option<u32>,
    /// Number and kind of the XDP program on it.
    pub xdp: Option<Xdp>,
    pub offloads: Offloads,
    pub rx_queues: usize,
    /// `rp_filter` in force: the higher of this interface's and `all`.
    pub rp_filter: u32,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xdp {
    pub id: u32,
    pub native: bool,
}

/// All interfaces, with what the files under `root` and ethtool add.
pub fn all(root: &Path) -> anyhow::Result<Vec<Link>> {
    let messages = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            let connection = tokio::spawn(connection);
            let links = handle.link().get().execute().try_collect::<Vec<_>>().await;
            connection.abort();
            anyhow::Ok(links?)
        })
        .context("listing the interfaces over netlink")?;
    messages
        .iter()
        .map(|message| complete(root, link(message)))
        .collect()
}

/// Adds what netlink does not say.
fn complete(root: &Path, mut link: Link) -> anyhow::Result<Link> {
    let device = root.join("sys/class/net").join(&link.name);
    link.driver = std::fs::read_link(device.join("device/driver"))
        .ok()
        .and_then(|target| Some(target.file_name()?.to_str()?.to_owned()));
    link.rx_queues = queues(&device);
    let filter = |name: &str| {
        let path = root.join("proc/sys/net/ipv4/conf").join(name);
        let text = std::fs::read_to_string(path.join("rp_filter")).ok()?;
        text.trim().parse::<u32>().ok()
    };
    link.rp_filter = filter("all").max(filter(&link.name)).unwrap_or(0);
    link.offloads = ethtool::offloads(&link.name)
        .with_context(|| format!("asking for the offloads of {}", link.name))?;
    Ok(link)
}

fn queues(device: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(device.join("queues")) else {
        return 0;
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with("rx-")).count()
}

fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    let mut elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Link(peer) if *peer != 0 => link.peer = Some(*peer),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            LinkAttribute::Xdp(xdp) => link.xdp = program(xdp),
            _ => {}
        }
    }
    if elsewhere || link.kind.as_deref() != Some("veth") {
        link.peer = None;
    }
    link
}

fn program(attributes: &[LinkXdp]) -> Option<Xdp> {
    let id = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) if *id != 0 => Some(*id),
        _ => None,
    })?;
    let native = attributes.iter().any(|attribute| {
        matches!(
            attribute,
            LinkXdp::Attached(XdpAttached::Driver | XdpAttached::Hardware)
        )
    });
    Some(Xdp { id, native })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_seen_as_it_is() {
        let links = all(Path::new("/")).unwrap();
        let lo = links.iter().find(|link| link.name == "lo").unwrap();
        assert!(lo.loopback);
        assert_eq!(lo.index, 1);
        assert!(lo.mtu > 0);
        assert_eq!(lo.driver, None);
    }
}
