//! Network-namespace laboratory for end-to-end tests and the demo.
//!
//! A [`Lab`] is a small Ethernet of namespaces: a client, the balancer, and backends, joined by a
//! bridge. [`Server`]s are processes in the backends' namespaces, the [`load`] generators are
//! threads in the client's, and [`Agent`] runs the real `lb` binary in the balancer's. Everything
//! is owned: dropping a value ends what it stands for, on a panic too.

pub mod agent;
pub mod applications;
pub mod beyond;
pub mod binaries;
pub mod cgroup;
pub mod config;
pub mod databases;
pub mod decap;
pub mod frameworks;
pub mod interrupt;
pub mod lab;
pub mod load;
pub mod namespace;
mod nics;
pub mod pattern;
pub mod process;
pub mod server;
pub mod server_handle;
pub mod skip;
pub mod sniff;
pub mod status;
mod sys;
pub mod wait;

pub use agent::{Agent, Output};
pub use config::{Backend, Config, Service};
pub use lab::{Host, Lab, with_lab};
pub use server_handle::Server;
pub use wait::wait_for;
