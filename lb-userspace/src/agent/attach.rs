//! The program's place on the interfaces, kept while they come and go.

use std::sync::Arc;

use tracing::{error, info, warn};

use super::RunError;
use super::run::Agent;
use crate::api::event::{Change, Kind, Origin};
use crate::datapath::{Attached, Command, Place, Writer};
use crate::model::Model;
use crate::neighbor::{Down, Links};

/// Puts the program where the configuration wants it, but for interfaces that are `gone`.
pub async fn attach(
    writer: &Writer,
    model: &Model,
    replace: bool,
    gone: &[String],
) -> Result<Vec<Attached>, RunError> {
    let mut interfaces = model.node.interfaces.clone();
    interfaces.retain(|name| !gone.contains(name));
    let attach = |reply| Command::Attach {
        place: Place {
            interfaces,
            mode: model.node.xdp_mode,
            replace,
            chain: model.node.chain.clone(),
        },
        reply,
    };
    let attached = writer.ask(attach).await?;
    attached.iter().for_each(tell);
    Ok(attached)
}

fn tell(on: &Attached) {
    info!(
        interface = on.name,
        mode = mode(on),
        adopted = !on.new,
        "attached"
    );
}

const fn mode(on: &Attached) -> &'static str {
    if on.native { "native" } else { "generic" }
}

impl Agent {
    /// Configured interfaces that the program was on and that no longer exist. A reload is not
    /// refused for them: they are attached to when they are back.
    pub fn gone(&self) -> Vec<String> {
        let mut names = self.core.model.node.interfaces.clone();
        names.retain(|name| !self.links.is_empty() && !self.links.contains_key(name));
        names
    }

    /// Interfaces have come or gone, or have other names.
    pub async fn links_changed(&mut self, links: Arc<Links>) {
        let before = std::mem::replace(&mut self.links, links);
        let model = self.core.model.clone();
        for name in &model.node.interfaces {
            let was = before.get(name).and_then(|link| link.down);
            // One that is gone is told elsewhere.
            let Some(link) = self.links.get(name).filter(|link| link.down != was) else {
                continue;
            };
            let what = match link.down {
                Some(why) => format!("{name}: {why}; no packet passes there"),
                None => format!("{name}: up again"),
            };
            warn!("{what}");
            self.core
                .record(Change::node(Kind::Datapath, Origin::Agent, what));
        }
        self.follow_links().await;
    }

    /// Why no packet passes an interface; `None` if it is up, gone, or not known yet.
    pub fn down(&self, name: &str) -> Option<Down> {
        self.links.get(name)?.down
    }

    /// Notes interfaces that are gone with the program on them, and attaches to those that are
    /// there again. What fails is tried again a second later.
    pub async fn follow_links(&mut self) {
        let links = self.links.clone();
        // Nothing is known yet: there is always one interface, the loopback one. Or there are maps to
        // be filled first.
        if links.is_empty() || self.migrates.is_some() {
            return;
        }
        let gone = |on: &Attached| !links.values().any(|link| link.index == on.index);
        for on in self.attached.extract_if(.., |on| gone(on)) {
            warn!(
                interface = on.name,
                "the interface is gone, and the program with it"
            );
            let what = format!("{} is gone, and the program with it", on.name);
            self.core
                .record(Change::node(Kind::Detached, Origin::Agent, what));
        }
        let model = self.core.model.clone();
        for name in &model.node.interfaces {
            if links.contains_key(name) && !self.attached.iter().any(|on| on.name == *name) {
                self.attach_again(name).await;
            }
        }
    }

    /// Puts the program in the place of one with maps of another layout, once its own are filled.
    pub async fn change_over(&mut self) -> Result<(), RunError> {
        if self.migrates.is_none() || !self.core.is_filled() {
            return Ok(());
        }
        let model = self.core.model.clone();
        // Part of the start, which wants all interfaces.
        self.attached = attach(&self.writer, &model, self.options.replace, &[]).await?;
        self.migrates = None;
        let what = "the program and maps of another version were replaced; established flows of nat \
                    are lost";
        warn!("{what}");
        self.core
            .record(Change::node(Kind::Attached, Origin::Agent, what));
        self.publish();
        Ok(())
    }

    async fn attach_again(&mut self, name: &str) {
        let mode_wanted = self.core.model.node.xdp_mode;
        let ask = |reply| Command::AttachAgain {
            interface: name.to_owned(),
            mode: mode_wanted,
            reply,
        };
        match self.writer.ask(ask).await {
            Ok(on) => {
                tell(&on);
                let what = format!("{name} is back: attached in {} mode", mode(&on));
                self.core
                    .record(Change::node(Kind::Attached, Origin::Agent, what));
                self.attached.push(on);
                self.attach_error = None;
            }
            Err(problem) => {
                let text = format!("{name} is back, but cannot be attached to: {problem}");
                if self.attach_error.as_ref() != Some(&text) {
                    error!("{text}");
                    self.core
                        .record(Change::node(Kind::Datapath, Origin::Agent, text.clone()));
                    self.attach_error = Some(text);
                }
            }
        }
    }
}
