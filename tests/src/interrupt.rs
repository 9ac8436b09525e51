//! Ctrl-C: every wait of this crate ends early once it was pressed, so that the owners of
//! namespaces and processes get to drop them.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn remember(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// From now on SIGINT, SIGTERM and SIGHUP are remembered instead of ending the process.
pub fn watch() -> io::Result<()> {
    sys::on_interrupt(remember)
}

/// Whether the user asked to stop.
pub fn requested() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}
