//! What the XDP program and the agent share: the layout of the maps, the flow hash, checksum
//! arithmetic and the verdicts. No dependencies, no allocation, no I/O.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod abi;
pub mod capture;
pub mod checksum;
pub mod flow;
pub mod flow_table;
pub mod hash;
pub mod rescue;
pub mod slot;
pub mod verdict;
