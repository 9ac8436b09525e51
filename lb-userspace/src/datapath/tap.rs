//! Captured packets: switches capturing on and off, and reads the records that the program writes.
//!
//! A capture lives as long as its [`Tap`]. Should the agent die with it, the program itself ends the
//! capture when the lease is over, so that nobody pays for what nobody reads.

use std::mem::offset_of;
use std::os::fd::AsFd;
use std::time::Duration;

use aya::maps::{MapData, PerCpuArray, RingBuf};
use lb_common::abi::Params;
use lb_common::capture::{ALL_SERVICES, Captured, MAX_KEPT, SENT_BYTES, word};
use lb_common::slot::BackendIndex;
use lb_common::verdict::Verdict;

use super::maps::AccessError;
use super::sys::{self, Mapped, Plain, Raw, Readable};
use crate::plan::ServiceId;

/// How long a capture goes on without being renewed.
pub const LEASE: Duration = Duration::from_secs(5);

/// A captured packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// When the program saw it: CLOCK_MONOTONIC, as [`sys::monotonic`].
    pub time: Duration,
    /// Interface that it came in by.
    pub ifindex: u32,
    /// Its length as it came in, bytes.
    pub length: u32,
    /// Number of its service; 0 if it has none.
    pub service: ServiceId,
    /// Number of the backend that it is for or from; 0 if there is none.
    pub backend: BackendIndex,
    /// What became of it; `None`: it went to the backend.
    pub verdict: Option<Verdict>,
    /// The XDP action.
    pub action: u32,
    /// How it began as it came in.
    pub data: Vec<u8>,
    /// How it began as it was sent, or the answer to it; empty if nothing was sent.
    pub sent: Vec<u8>,
}

/// A place from which packets are captured. There is one ring, so only one may capture at a time.
pub struct Tap {
    params: Mapped<Params>,
    ring: RingBuf<MapData>,
    lost: PerCpuArray<MapData, Raw<u64>>,
    lost_before: u64,
    /// What is captured, as the program reads it.
    word: u32,
}

impl Tap {
    pub(super) fn new(
        params: Mapped<Params>,
        ring: RingBuf<MapData>,
        lost: PerCpuArray<MapData, Raw<u64>>,
    ) -> Self {
        Self {
            params,
            ring,
            lost,
            lost_before: 0,
            word: 0,
        }
    }

    /// Starts to capture the packets of a service, or everything that is for a VIP, with up to
    /// `keep` bytes of each (1 to [`MAX_KEPT`]). What an earlier capture left is thrown away.
    pub fn start(&mut self, service: Option<ServiceId>, keep: u16) -> Result<(), AccessError> {
        self.stop();
        while self.ring.next().is_some() {}
        self.lost_before = self.count_lost()?;
        self.word = word(service.unwrap_or(ALL_SERVICES), keep.clamp(1, MAX_KEPT));
        self.renew();
        Ok(())
    }

    /// Extends the lease by [`LEASE`] from now; resumes a capture that was not renewed in time.
    pub fn renew(&mut self) {
        let until = (sys::monotonic() + LEASE).as_nanos() as u64;
        self.params
            .set_field(0, offset_of!(Params, capture_until), until);
        self.params
            .set_field(0, offset_of!(Params, capture), self.word);
    }

    /// Ends the capture. Records that are in the ring can still be read.
    pub fn stop(&mut self) {
        self.word = 0;
        self.params.set_field(0, offset_of!(Params, capture), 0u32);
    }

    /// The next packet; `None` while there is none.
    pub fn take(&mut self) -> Result<Option<Packet>, AccessError> {
        match self.ring.next() {
            Some(record) => parse(&record).map(Some),
            None => Ok(None),
        }
    }

    /// What to wait with for packets. Must be called within a tokio runtime.
    pub fn readable(&self) -> Result<Readable, AccessError> {
        let fd = self.ring.as_fd().try_clone_to_owned();
        fd.and_then(Readable::new)
            .map_err(|source| AccessError::System {
                name: "CAPTURE",
                source,
            })
    }

    /// Packets of this capture that found no room in the ring.
    pub fn lost(&self) -> Result<u64, AccessError> {
        Ok(self.count_lost()?.wrapping_sub(self.lost_before))
    }

    fn count_lost(&self) -> Result<u64, AccessError> {
        let failed = |source| AccessError::Map {
            name: "CAPTURE_LOST",
            source,
        };
        let values = self.lost.get(&0, 0).map_err(failed)?;
        Ok(values
            .iter()
            .fold(0, |sum: u64, Raw(cpu)| sum.wrapping_add(*cpu)))
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop();
    }
}

fn parse(record: &[u8]) -> Result<Packet, AccessError> {
    let wrong = |what: String| AccessError::Content {
        name: "CAPTURE",
        what,
    };
    let Some(head) = Captured::from_bytes(record) else {
        return Err(wrong(format!("a record of {} bytes", record.len())));
    };
    let verdict = head
        .verdict()
        .map_err(|number| wrong(format!("verdict {number}")))?;
    let data = &record[size_of::<Captured>()..];
    let data = data
        .get(..usize::from(head.kept))
        .ok_or_else(|| wrong(format!("{} of {} bytes", data.len(), head.kept)))?;
    let sent = &record[offset_of!(Captured, sent)..][..SENT_BYTES];
    let sent = sent
        .get(..usize::from(head.sent_kept))
        .ok_or_else(|| wrong(format!("{} bytes sent", head.sent_kept)))?;
    Ok(Packet {
        time: Duration::from_nanos(head.time),
        ifindex: head.ifindex,
        length: head.length,
        service: head.service,
        backend: head.backend,
        verdict,
        action: head.action,
        data: data.to_vec(),
        sent: sent.to_vec(),
    })
}
