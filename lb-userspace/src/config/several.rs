//! Several probes of one service: `[[service.health]]`, once for each.

use std::collections::BTreeMap;

use super::health::{self, Checks};
use super::reader::{Errors, Reader, Value};
use crate::model::Protocol;

/// Reads the health tables of a service. None of `probe = "none"`; `None` only if there are errors.
pub fn read(
    readers: &[Reader<'_>],
    protocol: Protocol,
    errors: &mut Errors<'_>,
) -> Option<Vec<Checks>> {
    let mut all = Some(Vec::new());
    for reader in readers {
        let settings = health::read(reader, errors);
        match health::checks(settings, reader, protocol, errors) {
            Some(Some(checks)) => {
                all = all.map(|mut all| {
                    all.push(checks);
                    all
                })
            }
            Some(None) if readers.len() == 1 => {}
            Some(None) => {
                let span = reader.written("probe").map(Value::span);
                errors.add(
                    span.unwrap_or_else(|| reader.span.clone()),
                    "no probe beside others",
                    "remove this [[service.health]], or write what it is to probe",
                );
                all = None;
            }
            None => all = None,
        }
    }
    let all = all?;
    let mut names = BTreeMap::new();
    for (checks, reader) in all.iter().zip(readers) {
        let name = &checks.policy.name;
        if names.insert(name, ()).is_some() {
            errors.add(
                reader
                    .own("name")
                    .map_or_else(|| reader.span.clone(), Value::span),
                format!("the service has two probes named \"{name}\""),
                format!("give each a name of its own: name = \"{name}-2\""),
            );
            return None;
        }
    }
    Some(all)
}
