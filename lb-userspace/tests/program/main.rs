//! The real XDP program under `BPF_PROG_TEST_RUN`: tables of packets in, verdicts and packets out.
//! Needs root; without it each test says that it is skipped.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod capture;
mod chain;
mod contention;
mod death;
mod decap;
mod dsr;
mod echo;
mod explain;
mod explain_property;
mod flood;
mod flows_property;
mod foreign;
mod fragment;
mod hostile;
mod icmp;
mod katran;
mod kernel;
mod maps;
mod migrate;
mod nat;
mod packets;
mod pass;
mod quic;
mod ranges;
mod signs;
mod tunnel;
