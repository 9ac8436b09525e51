//! The one deadline of a probe, kept so that this process's own lateness is not blamed on the
//! backend.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

/// The deadline passed without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// This side was awake all the time and nothing came.
    Deadline,
    /// This side was not running for so much of the time that nothing can be said.
    Starved {
        /// For how long.
        stalled: Duration,
    },
}

/// Into how many naps the wait is cut. The lateness of each wake-up measures how long this task was
/// kept from running.
const NAPS: u32 = 16;

/// Wake-ups that are late by less than this are the timer's granularity.
const GRANULARITY: Duration = Duration::from_millis(10);

/// Share of the timeout that may be lost to this side's own lateness before a timeout is no
/// evidence any more: one quarter.
const TOLERATED: u32 = 4;

/// Runs `work` for at most `timeout`.
///
/// A process that wakes after the deadline first takes in what has arrived meanwhile: an answer
/// that waits in the socket is judged, not thrown away as late. If there is none, and the process
/// was kept from running for more than a quarter of the time, the result is
/// [`Expired::Starved`].
pub async fn within<F: Future>(timeout: Duration, work: F) -> Result<F::Output, Expired> {
    let mut work = pin!(work);
    let deadline = Instant::now() + timeout;
    let nap = timeout / NAPS;
    let mut stalled = Duration::ZERO;
    loop {
        let now = Instant::now();
        if now >= deadline {
            break;
        }
        let due = (now + nap).min(deadline);
        if let Ok(output) = timeout_at(due, work.as_mut()).await {
            return Ok(output);
        }
        let late = due.elapsed();
        if late > GRANULARITY {
            stalled += late;
        }
    }
    // Readiness reaches the sockets when the task gives way to the runtime's event loop; the
    // second time is for what only the first made possible (a request after a connect).
    for _ in 0..2 {
        tokio::task::yield_now().await;
        if let Poll::Ready(output) = futures::poll!(work.as_mut()) {
            return Ok(output);
        }
    }
    if stalled > timeout / TOLERATED {
        return Err(Expired::Starved { stalled });
    }
    Err(Expired::Deadline)
}
