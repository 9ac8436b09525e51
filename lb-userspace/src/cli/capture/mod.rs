//! `lb capture`: packets with what became of them, to the terminal or into a file for Wireshark.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::Failure;
use super::control::{block_on, unexpected};
use super::output::{self, Palette, complain};
use crate::api::Request;
use crate::api::capture::{Closed, Opened, Packet};
use crate::api::client::{self, Answers};
use crate::api::request::Frame;

mod headers;
mod line;
mod pcapng;

/// What `lb capture` is told.
#[derive(Debug)]
pub struct Options {
    /// `None`: everything that is for a VIP.
    pub service: Option<String>,
    /// A pcapng file; `-`: standard output.
    pub write: Option<PathBuf>,
    /// How many packets; `None`: until Ctrl-C.
    pub count: Option<u64>,
    pub snaplen: u16,
    pub json: bool,
}

/// `lb capture`.
pub fn run(socket: &Path, options: &Options) -> Result<u8, Failure> {
    let mut sink = Sink::open(options)?;
    let request = Request::Capture {
        service: options.service.clone(),
        snaplen: options.snaplen,
    };
    let limit = options.count.unwrap_or(u64::MAX);
    block_on(async {
        // From here on Ctrl-C is the way to end well, whenever it comes.
        let mut interrupt = signal(SignalKind::interrupt()).context("listening for Ctrl-C")?;
        let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        let mut answers = client::send(socket, &request).await?;
        let mut seen = 0;
        let mut finishing = false;
        loop {
            let frame = tokio::select! {
                frame = next(&mut answers, &mut sink) => frame?,
                _ = interrupt.recv() => None,
                _ = terminate.recv() => None,
            };
            match frame {
                // Told to end twice: without the last word.
                None if finishing => return Ok(1),
                None => {
                    finishing = true;
                    answers.finish().await?;
                }
                Some(Next::Frame(Frame::Capturing(opened))) => sink.begin(&opened)?,
                Some(Next::Frame(Frame::Packet(packet))) => {
                    if seen < limit {
                        seen += 1;
                        sink.packet(&packet)?;
                    }
                    if seen == limit && !finishing {
                        finishing = true;
                        answers.finish().await?;
                    }
                }
                Some(Next::Frame(Frame::Captured(closed))) => {
                    sink.end(&closed)?;
                    return Ok(summary(seen, &closed));
                }
                Some(Next::Frame(Frame::Error(error))) => return Err(Failure::Api(error)),
                Some(Next::Frame(other)) => return Err(unexpected(&other)),
                Some(Next::End) => {
                    sink.flush()?;
                    let reason = Some("the agent ended the connection".to_owned());
                    return Ok(summary(seen, &Closed { lost: 0, reason }));
                }
            }
        }
    })
}

/// What the agent sends, or that it sends no more.
enum Next {
    Frame(Frame),
    End,
}

/// The agent's next frame. What was written so far is shown before it waits.
async fn next(answers: &mut Answers, sink: &mut Sink) -> Result<Option<Next>, Failure> {
    if !answers.has_more() {
        sink.flush()?;
    }
    Ok(Some(answers.next().await?.map_or(Next::End, Next::Frame)))
}

/// Tells on stderr how much was captured; gives the exit code.
fn summary(seen: u64, closed: &Closed) -> u8 {
    let lost = match closed.lost {
        0 => "none lost".to_owned(),
        lost => format!(
            "{lost} LOST: they came faster than they could be read (a smaller --snaplen, or one \
             service rather than --all, loses fewer)"
        ),
    };
    let packets = if seen == 1 { "packet" } else { "packets" };
    complain(&format!("{seen} {packets} captured, {lost}"));
    match &closed.reason {
        None => 0,
        Some(reason) => {
            complain(&format!("the capture ended by itself: {reason}"));
            1
        }
    }
}

/// Where packets go.
enum Sink {
    Lines(Palette),
    Json,
    /// A file that has not begun: its head needs to know the interfaces.
    Waiting(Option<Box<dyn Write>>),
    File(Option<pcapng::Writer<Box<dyn Write>>>),
}

impl Sink {
    fn open(options: &Options) -> Result<Self, Failure> {
        let Some(path) = &options.write else {
            return Ok(match options.json {
                true => Self::Json,
                false => Self::Lines(Palette::of_stdout()),
            });
        };
        if path.as_os_str() == "-" {
            return Ok(Self::Waiting(Some(Box::new(BufWriter::new(io::stdout())))));
        }
        // Packets are nobody else's business.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self::Waiting(Some(Box::new(BufWriter::new(file)))))
    }

    fn begin(&mut self, opened: &Opened) -> Result<(), Failure> {
        if let Self::Waiting(out) = self
            && let Some(out) = out.take()
        {
            *self = Self::File(Some(pcapng::Writer::new(out, opened)?));
        }
        Ok(())
    }

    fn packet(&mut self, packet: &Packet) -> Result<(), Failure> {
        match self {
            Self::Lines(palette) => output::print(&line::render(packet, *palette))?,
            Self::Json => {
                let mut text =
                    serde_json::to_string(packet).context("a packet does not become JSON")?;
                text.push('\n');
                output::print(&text)?;
            }
            Self::File(Some(file)) => {
                let mut comment = line::fate(packet);
                if let Some(help) = line::help(packet) {
                    comment.push_str(&format!("\n{help}"));
                }
                file.packet(packet, &comment)?;
            }
            // The agent sends no packet before it says that the capture is on.
            Self::Waiting(_) | Self::File(None) => {}
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        match self {
            Self::File(Some(file)) => Ok(file.flush()?),
            Self::Lines(_) | Self::Json | Self::Waiting(_) | Self::File(None) => Ok(()),
        }
    }

    fn end(&mut self, closed: &Closed) -> Result<(), Failure> {
        if let Self::File(file) = self
            && let Some(file) = file.take()
        {
            file.finish(jiff::Timestamp::now(), closed.lost)?;
        }
        Ok(())
    }
}
