//! A connection that is open and silent until it is used.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result};

use super::TIMEOUT;
use crate::lab::Host;

/// A connection to a TCP echo.
#[derive(Debug)]
pub struct Idle {
    /// The backend that greeted it.
    pub backend: String,
    stream: TcpStream,
}

impl Idle {
    /// Opens one and waits for the greeting.
    pub fn open(client: &Host, to: SocketAddr) -> Result<Self> {
        let mut stream = client
            .namespace
            .within(|| TcpStream::connect_timeout(&to, TIMEOUT))??;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut greeting = Vec::new();
        while greeting.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte).context("the greeting")?;
            greeting.push(byte[0]);
        }
        greeting.pop();
        Ok(Self {
            backend: String::from_utf8(greeting)?,
            stream,
        })
    }

    /// Writes, and waits for what comes of it: an echo, or an error.
    pub fn exchange(&mut self) -> std::io::Result<()> {
        self.stream.write_all(b"once more")?;
        self.stream.read_exact(&mut [0; 9])
    }
}
