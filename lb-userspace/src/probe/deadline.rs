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
    Err(Expired::after(timeout, stalled))
}

impl Expired {
    fn after(timeout: Duration, stalled: Duration) -> Self {
        if stalled > timeout / TOLERATED {
            Self::Starved { stalled }
        } else {
            Self::Deadline
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tokio::io::AsyncReadExt;

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(200);

    /// Keeps the one thread of the runtime busy until well after the deadline.
    fn starve() {
        std::thread::sleep(2 * TIMEOUT);
    }

    #[test]
    fn a_little_lateness_is_no_excuse() {
        let quarter = TIMEOUT / 4;
        assert_eq!(Expired::after(TIMEOUT, Duration::ZERO), Expired::Deadline);
        assert_eq!(Expired::after(TIMEOUT, quarter), Expired::Deadline);
        let stalled = quarter + Duration::from_nanos(1);
        assert_eq!(
            Expired::after(TIMEOUT, stalled),
            Expired::Starved { stalled }
        );
    }

    #[tokio::test]
    async fn work_that_never_rests_is_stopped() {
        let work = async {
            loop {
                tokio::task::yield_now().await;
            }
        };
        let result: Result<(), _> = within(TIMEOUT, work).await;
        assert!(result.is_err());
    }

    #[tokio::test]
    async fn a_starved_prober_does_not_blame_the_backend() {
        let starving = tokio::spawn(async { starve() });
        let result = within(TIMEOUT, std::future::pending::<()>()).await;
        match result {
            Err(Expired::Starved { stalled }) => assert!(stalled >= TIMEOUT),
            other => panic!("{other:?}"),
        }
        starving.await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_that_waits_in_the_socket_is_read_after_the_deadline() {
        let (mut server, client) = std::os::unix::net::UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        let mut client = tokio::net::UnixStream::from_std(client).unwrap();
        let starving = tokio::spawn(async move {
            server.write_all(b"ok").unwrap();
            starve();
        });
        let mut buffer = [0; 2];
        let result = within(TIMEOUT, client.read_exact(&mut buffer)).await;
        assert_eq!(result.unwrap().unwrap(), 2);
        assert_eq!(&buffer, b"ok");
        starving.await.unwrap();
    }
}
