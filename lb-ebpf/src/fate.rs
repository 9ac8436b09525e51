//! What becomes of a packet, and the form in which that leaves the packet path.

use lb_common::abi::Params;
use lb_common::slot::BackendIndex;
use lb_common::verdict::Verdict;

/// A packet that was sent on.
#[derive(Clone, Copy)]
pub struct Sent {
    /// The XDP action.
    pub action: u32,
    /// Where it goes; of a reply, where it comes from.
    pub backend: BackendIndex,
    /// Whether it goes to a client.
    pub is_reply: bool,
}

impl Sent {
    /// To a backend.
    #[inline(always)]
    pub fn to(backend: BackendIndex, action: u32) -> Self {
        Self {
            action,
            backend,
            is_reply: false,
        }
    }

    /// From a backend to its client.
    #[inline(always)]
    pub fn reply(backend: BackendIndex, action: u32) -> Self {
        Self {
            action,
            backend,
            is_reply: true,
        }
    }
}

/// Why a packet is not forwarded, and the service it is counted for (0: none).
#[derive(Clone, Copy)]
pub struct Refusal {
    pub service: u16,
    pub verdict: Verdict,
}

/// What was done with a packet, or the reason why nothing was.
pub type Fate = Result<Sent, Refusal>;

/// A [`Fate`] and whether the packet is captured, in one register: bits 0–7 action or verdict, 8–23
/// backend or service, 24 reply, 31 refused, 32–63 captured if any is set.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Packed(pub u64);

impl Packed {
    const REPLY: u64 = 1 << 24;
    const REFUSED: u64 = 1 << 31;

    #[inline(always)]
    pub fn pack(fate: Fate) -> Self {
        Self(match fate {
            Ok(Sent {
                action,
                backend,
                is_reply,
            }) => {
                let reply = if is_reply { Self::REPLY } else { 0 };
                (action & 0xff) as u64 | (backend as u64) << 8 | reply
            }
            Err(Refusal { service, verdict }) => {
                Self::REFUSED | (service as u64) << 8 | verdict as u64
            }
        })
    }

    /// With the word that says what is captured. It is read again, not kept: the verifier would
    /// follow a word that it has seen compared through all that lies between.
    #[inline(always)]
    pub fn captured(self, params: &Params) -> Self {
        // SAFETY: a reference is valid to read from.
        let word = unsafe { (&raw const params.capture).read_volatile() };
        Self(self.0 | (word as u64) << 32)
    }

    /// The action, if the packet was sent and is not captured: one comparison for most packets.
    #[inline(always)]
    pub fn plainly_sent(self) -> Option<u32> {
        if self.0 < Self::REFUSED {
            Some(self.0 as u32 & 0xff)
        } else {
            None
        }
    }

    #[inline(always)]
    pub fn is_captured(self) -> bool {
        self.0 >> 32 != 0
    }

    #[inline(always)]
    pub fn unpack(self) -> Fate {
        let number = (self.0 >> 8) as u16;
        if self.0 & Self::REFUSED == 0 {
            return Ok(Sent {
                action: self.0 as u32 & 0xff,
                backend: number,
                is_reply: self.0 & Self::REPLY != 0,
            });
        }
        Err(Refusal {
            service: number,
            verdict: Verdict::from_number(self.0 as u8).unwrap_or(Verdict::DropMalformed),
        })
    }
}
