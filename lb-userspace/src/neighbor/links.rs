//! Which interfaces there are, so that one that comes back gets its program again, and which of
//! them no packet passes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::mpsc;
use tracing::warn;

use super::{NeighborError, RETRY};

/// How often all are listed again, lest a message was lost.
const REFRESH: Duration = Duration::from_secs(30);

/// The interfaces, by name.
pub type Links = BTreeMap<String, Link>;

/// An interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Why no packet passes it; absent if it is up.
    pub down: Option<Down>,
}

/// Why no packet passes an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Down {
    /// It is set down (`ip link set DEV down`).
    Set,
    /// No cable, or the other end is down.
    Carrier,
}

impl std::fmt::Display for Down {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Set => "set down",
            Self::Carrier => "no carrier",
        })
    }
}

/// Reports the interfaces of this namespace now and whenever they change.
pub async fn keep_watching_links(report: mpsc::UnboundedSender<Arc<Links>>) {
    while let Err(error) = watch(&report).await {
        warn!("watching interfaces: {error}; trying again");
        tokio::time::sleep(RETRY).await;
    }
}

async fn watch(report: &mpsc::UnboundedSender<Arc<Links>>) -> Result<(), NeighborError> {
    let (connection, handle, mut messages) =
        rtnetlink::new_multicast_connection(&[MulticastGroup::Link])?;
    let connection = tokio::spawn(connection);
    let mut all = list(&handle).await?;
    let mut known = None;
    let result = loop {
        let links: Links = all.values().cloned().collect();
        if known.as_ref() != Some(&links) {
            known = Some(links.clone());
            if report.send(Arc::new(links)).is_err() {
                break Ok(());
            }
        }
        match tokio::time::timeout(REFRESH, messages.next()).await {
            Ok(Some((message, _))) if apply(&mut all, &message.payload) => {}
            Ok(None) => break Err(NeighborError::Ended),
            // An overrun, or nothing for long.
            Ok(Some(_)) | Err(_) => match list(&handle).await {
                Ok(listed) => all = listed,
                Err(error) => break Err(error),
            },
        }
    };
    connection.abort();
    result
}

/// Names and interfaces, by number.
type All = BTreeMap<u32, (String, Link)>;

async fn list(handle: &Handle) -> Result<All, NeighborError> {
    let mut all = All::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await? {
        all.extend(read(&link));
    }
    Ok(all)
}

/// Takes a message over; false if it says nothing of links.
fn apply(all: &mut All, payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    let NetlinkPayload::InnerMessage(message) = payload else {
        return false;
    };
    match message {
        // A bridge tells of its ports in its own family: a port that leaves it is not gone.
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link)
            if link.header.interface_family != AddressFamily::Unspec => {}
        RouteNetlinkMessage::NewLink(link) => {
            all.extend(read(link));
        }
        RouteNetlinkMessage::DelLink(link) => {
            all.remove(&link.header.index);
        }
        _ => return false,
    }
    true
}

fn read(link: &LinkMessage) -> Option<(u32, (String, Link))> {
    let name = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })?;
    let flags = link.header.flags;
    let down = match (
        flags.contains(LinkFlags::Up),
        flags.contains(LinkFlags::LowerUp),
    ) {
        (false, _) => Some(Down::Set),
        (true, false) => Some(Down::Carrier),
        (true, true) => None,
    };
    let index = link.header.index;
    Some((index, (name, Link { index, down })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(family: AddressFamily, index: u32, name: &str) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.interface_family = family;
        link.header.index = index;
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        link
    }

    fn told(all: &mut All, message: RouteNetlinkMessage) -> bool {
        apply(all, &NetlinkPayload::InnerMessage(message))
    }

    #[test]
    fn links_come_go_and_change_their_names() {
        let mut all = All::new();
        let unspec = AddressFamily::Unspec;
        let names = |all: &All| -> Vec<_> { all.values().map(|(name, _)| name.clone()).collect() };
        let eth0 = message(unspec, 2, "eth0");
        assert!(told(&mut all, RouteNetlinkMessage::NewLink(eth0.clone())));
        let renamed = message(unspec, 2, "wan");
        assert!(told(&mut all, RouteNetlinkMessage::NewLink(renamed)));
        assert_eq!(names(&all), ["wan"]);
        let left_bridge = message(AddressFamily::Bridge, 2, "wan");
        assert!(told(&mut all, RouteNetlinkMessage::DelLink(left_bridge)));
        assert_eq!(all.len(), 1);
        assert!(told(&mut all, RouteNetlinkMessage::DelLink(eth0)));
        assert!(all.is_empty());
        assert!(!apply(&mut all, &NetlinkPayload::Noop));
    }

    #[test]
    fn why_no_packet_passes_is_read_from_the_flags() {
        for (flags, down) in [
            (LinkFlags::Up | LinkFlags::LowerUp, None),
            (LinkFlags::Up, Some(Down::Carrier)),
            (LinkFlags::empty(), Some(Down::Set)),
        ] {
            let mut link = message(AddressFamily::Unspec, 2, "eth0");
            link.header.flags = flags;
            let (_, (_, found)) = read(&link).unwrap();
            assert_eq!(found, Link { index: 2, down });
        }
    }
}
