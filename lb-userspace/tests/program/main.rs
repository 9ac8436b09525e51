//! The real XDP program under `BPF_PROG_TEST_RUN`: tables of packets in, verdicts and packets out.
//! Needs root; without it each test says that it is skipped.

mod dsr;
mod hostile;
mod kernel;
mod maps;
mod nat;
mod packets;
mod pass;
