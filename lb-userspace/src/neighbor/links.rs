//! Which interfaces there are, so that one that comes back gets its program again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::mpsc;
use tracing::warn;

use super::{NeighborError, RETRY};

/// How often all are listed again, lest a message was lost.
const REFRESH: Duration = Duration::from_secs(30);

/// Numbers of the interfaces, by name.
pub type Links = BTreeMap<String, u32>;

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
    let mut names = list(&handle).await?;
    let mut known = None;
    let result = loop {
        let links: Links = names.iter().map(|(id, name)| (name.clone(), *id)).collect();
        if known.as_ref() != Some(&links) {
            known = Some(links.clone());
            if report.send(Arc::new(links)).is_err() {
                break Ok(());
            }
        }
        match tokio::time::timeout(REFRESH, messages.next()).await {
            Ok(Some((message, _))) if apply(&mut names, &message.payload) => {}
            Ok(None) => break Err(NeighborError::Ended),
            // An overrun, or nothing for long.
            Ok(Some(_)) | Err(_) => match list(&handle).await {
                Ok(listed) => names = listed,
                Err(error) => break Err(error),
            },
        }
    };
    connection.abort();
    result
}

async fn list(handle: &Handle) -> Result<BTreeMap<u32, String>, NeighborError> {
    let mut names = BTreeMap::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await? {
        names.extend(name(&link).map(|name| (link.header.index, name)));
    }
    Ok(names)
}

/// Takes a message over; false if it says nothing of links.
fn apply(names: &mut BTreeMap<u32, String>, payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    let NetlinkPayload::InnerMessage(message) = payload else {
        return false;
    };
    match message {
        // A bridge tells of its ports in its own family: a port that leaves it is not gone.
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link)
            if link.header.interface_family != AddressFamily::Unspec => {}
        RouteNetlinkMessage::NewLink(link) => {
            names.extend(name(link).map(|name| (link.header.index, name)));
        }
        RouteNetlinkMessage::DelLink(link) => {
            names.remove(&link.header.index);
        }
        _ => return false,
    }
    true
}

fn name(link: &LinkMessage) -> Option<String> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })
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

    fn told(names: &mut BTreeMap<u32, String>, message: RouteNetlinkMessage) -> bool {
        apply(names, &NetlinkPayload::InnerMessage(message))
    }

    #[test]
    fn links_come_go_and_change_their_names() {
        let mut names = BTreeMap::new();
        let unspec = AddressFamily::Unspec;
        let eth0 = message(unspec, 2, "eth0");
        assert!(told(&mut names, RouteNetlinkMessage::NewLink(eth0.clone())));
        let renamed = message(unspec, 2, "wan");
        assert!(told(&mut names, RouteNetlinkMessage::NewLink(renamed)));
        assert_eq!(names, BTreeMap::from([(2, "wan".to_owned())]));
        let left_bridge = message(AddressFamily::Bridge, 2, "wan");
        assert!(told(&mut names, RouteNetlinkMessage::DelLink(left_bridge)));
        assert_eq!(names.len(), 1);
        assert!(told(&mut names, RouteNetlinkMessage::DelLink(eth0)));
        assert!(names.is_empty());
        assert!(!apply(&mut names, &NetlinkPayload::Noop));
    }
}
