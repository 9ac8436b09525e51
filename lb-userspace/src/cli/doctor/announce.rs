//! Announced VIPs: whether their routes are in the way of packets.

use std::collections::BTreeSet;

use anyhow::Context;
use futures::TryStreamExt;
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};

use super::Finding;
use super::checks::{ok, warn};
use crate::model::Model;

/// Looks at the host, if the configuration announces anything.
pub fn look(model: &Model) -> anyhow::Result<Option<Finding>> {
    let announces = model.services.iter().any(|s| s.announce.is_some());
    if !announces {
        return Ok(None);
    }
    let tables = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(asked())
        .context("listing the routing rules over netlink")?;
    Ok(Some(judge(model.node.announce_table, &tables)))
}

/// The tables that the kernel's rules ask.
async fn asked() -> anyhow::Result<BTreeSet<u32>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let mut tables = BTreeSet::new();
    for family in [rtnetlink::IpVersion::V4, rtnetlink::IpVersion::V6] {
        let rules = handle.rule().get(family).execute();
        tables.extend(rules.try_collect::<Vec<_>>().await?.iter().map(table));
    }
    connection.abort();
    Ok(tables)
}

fn table(rule: &RuleMessage) -> u32 {
    let attribute = rule
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RuleAttribute::Table(table) => Some(*table),
            _ => None,
        });
    attribute.unwrap_or(rule.header.table.into())
}

fn judge(table: u32, asked: &BTreeSet<u32>) -> Finding {
    if !asked.contains(&table) {
        return ok("announce_table").what(format!(
            "no routing rule asks table {table}, in which the routes of announced VIPs stand"
        ));
    }
    warn(
        "announce_table",
        "While a VIP is announced, packets to it that are left to this host, and this host's own, \
         are dropped, unless it has the address itself.",
    )
    .what(format!(
        "a routing rule asks table {table}, in which the routes of announced VIPs stand"
    ))
    .mend(
        "leave node.announce_table at 108 and let the routing daemon look there, if that is not meant",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_table_that_packets_are_routed_by_is_told() {
        let asked = BTreeSet::from([253, 254, 255]);
        assert_eq!(judge(108, &asked).level, Level::Ok);
        let main = judge(254, &asked);
        assert_eq!(main.level, Level::Warn);
        assert!(main.mend.is_some());
    }
}
