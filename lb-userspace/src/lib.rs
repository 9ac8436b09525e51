//! The agent and command line of `lb`.
//!
//! Data goes one way: [`config`] → [`model`] → [`health`] → [`routing`] → [`table`] → [`plan`] →
//! [`datapath`]. The first six are pure: no clock, socket, map or randomness. [`probe`] and
//! [`neighbor`] watch the world and send events to the one loop in [`agent`], which owns all state.
//! [`simulate`] has the pure part decide about recorded outcomes instead.

pub mod agent;
pub mod announce;
pub mod api;
pub mod cli;
pub mod config;
pub mod datapath;
pub mod discovery;
pub mod health;
pub mod model;
pub mod neighbor;
pub mod plan;
mod private;
pub mod privileges;
pub mod probe;
pub mod routing;
pub mod simulate;
pub mod table;
