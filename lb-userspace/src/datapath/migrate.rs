//! Changing over from maps of another layout (`lb run --migrate`): new maps are made and filled
//! beside the old ones, while the old program forwards by those; then the program is replaced in
//! the links that stand, and the new pins take the place of the old.
//!
//! ```text
//!   /sys/fs/bpf/lb        old maps, old program, links      1. links get the new program
//!   /sys/fs/bpf/lb-next   new maps, new program             2. links move to lb-next
//!                                                           3. lb becomes lb-last
//!                                                           4. lb-next becomes lb
//!                                                           5. lb-last is removed
//! ```
//! [`recover`] tells from what is there how far an agent came that was killed on the way.

use std::io;
use std::path::Path;

use tracing::{info, warn};

use super::attach;
use super::pin::{PinDirectory, PinError};
use super::{DatapathError, interface, sys};

/// A change-over that is under way. Dropped before [`Self::finish`], it leaves nothing.
pub struct Migration {
    old: PinDirectory,
    next: PinDirectory,
    done: bool,
}

impl Migration {
    /// Begins one: there is nothing beside the old pins.
    pub fn begin(old: &PinDirectory) -> Result<Self, PinError> {
        let next = old.next();
        next.remove()?;
        info!(
            pins = %old.path().display(),
            "the pinned maps have another layout: filling new ones beside them"
        );
        Ok(Self {
            old: old.clone(),
            next,
            done: false,
        })
    }

    /// Where the new maps are until they take the place of the old.
    pub fn next(&self) -> &PinDirectory {
        &self.next
    }

    /// Where the links are.
    pub fn old(&self) -> &PinDirectory {
        &self.old
    }

    /// Whether the old program runs in a driver.
    pub fn is_native(&self) -> Result<bool, DatapathError> {
        for name in self.old.links()? {
            let found = interface::query(&name);
            // An interface that is gone has no mode.
            if found.is_ok_and(|found| found.program.is_some_and(|program| program.native)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Puts the old program back on these interfaces.
    pub fn undo<'n>(&self, names: impl Iterator<Item = &'n str>) -> Result<(), DatapathError> {
        let path = super::pin::c_path(&self.old.program())?;
        let program = sys::open_pin(&path)
            .map_err(|source| PinError::directory(&self.old.program(), source))?;
        for name in names {
            attach::put_back(&self.old, name, &program)?;
        }
        Ok(())
    }

    /// Puts the new pins in the place of the old, when the links have the new program. Gives where
    /// they are then.
    pub fn finish(mut self) -> Result<PinDirectory, PinError> {
        move_links(&self.old, &self.next)?;
        let last = self.old.last();
        rename(self.old.path(), last.path())?;
        rename(self.next.path(), self.old.path())?;
        self.done = true;
        last.remove()?;
        Ok(self.old.clone())
    }
}

impl Drop for Migration {
    fn drop(&mut self) {
        if !self.done
            && let Err(error) = recover(&self.old)
        {
            warn!("removing the new maps, which are not in force: {error}");
        }
    }
}

/// Ends what an agent has begun that was killed while it changed over.
pub fn recover(pins: &PinDirectory) -> Result<(), PinError> {
    let (next, last) = (pins.next(), pins.last());
    if next.exists() && pins.exists() {
        // Links that have the new program already keep it, and its maps with it, until the next
        // change-over.
        move_links(&next, pins)?;
        next.remove()?;
    } else if next.exists() {
        rename(next.path(), pins.path())?;
    }
    last.remove()
}

fn move_links(from: &PinDirectory, to: &PinDirectory) -> Result<(), PinError> {
    for name in from.links()? {
        rename(&from.link(&name), &to.link(&name))?;
    }
    Ok(())
}

/// Moves what bpffs holds; the kernel refuses to move a folder onto one that is not empty.
fn rename(from: &Path, to: &Path) -> Result<(), PinError> {
    std::fs::rename(from, to).map_err(|source: io::Error| PinError::directory(from, source))
}
