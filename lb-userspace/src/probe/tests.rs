//! Probes against sockets of this process.

use super::*;
