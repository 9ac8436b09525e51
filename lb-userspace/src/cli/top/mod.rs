//! `lb top`: the status once a second, as rates.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::event::{Event, EventStream, KeyCode, KeyEventKind, KeyModifiers};
use crossterm::style::Print;
use crossterm::terminal::{self, Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen};
use crossterm::{execute, queue};
use futures::StreamExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::Failure;
use super::control::{block_on, unexpected};
use super::output::{self, Palette};
use crate::api::request::Frame;
use crate::api::status::Status;
use crate::api::{self, Request, client};

mod rates;
mod view;

use rates::Pair;
pub use view::Sort;
use view::View;

/// How often the agent is asked.
const REFRESH: Duration = Duration::from_secs(1);

/// `lb top`. One frame, over one refresh, where there is no terminal.
pub fn run(socket: &Path, service: Option<String>, once: bool, sort: Sort) -> Result<u8, Failure> {
    let request = Request::Status { service };
    let view = View {
        sort,
        ..View::default()
    };
    block_on(async {
        let mut screen = Screen {
            before: None,
            now: ask(socket, &request).await?,
            trouble: None,
            view,
            palette: Palette::of_stdout(),
        };
        if once || !io::stdout().is_terminal() {
            sleep(REFRESH).await;
            screen.take(ask(socket, &request).await);
            output::print(&(screen.lines(None).join("\n") + "\n"))?;
        } else {
            live(socket, &request, screen).await?;
        }
        Ok(0)
    })
}

async fn ask(socket: &Path, request: &Request) -> Result<Status, Failure> {
    match client::send(socket, request).await?.one().await? {
        Frame::Status(status) => Ok(Status::clone(&status)),
        other => Err(unexpected(&other)),
    }
}

/// Shows frames until the user has seen enough.
async fn live(socket: &Path, request: &Request, mut screen: Screen) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let _terminal = Terminal::take()?;
    let mut keys = EventStream::new();
    let mut refresh = interval(REFRESH);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    refresh.tick().await;
    loop {
        screen.draw()?;
        tokio::select! {
            // An agent that is slow to answer holds up the keys no longer than it may take.
            _ = refresh.tick() => if !screen.view.paused {
                screen.take(ask(socket, request).await);
            },
            event = keys.next() => match event {
                Some(Ok(event)) => if screen.pressed(&event) {
                    return Ok(());
                },
                Some(Err(error)) => return Err(Failure::Output(error)),
                // The terminal is gone.
                None => return Ok(()),
            },
            _ = terminate.recv() => return Ok(()),
        }
    }
}

/// The terminal as the frames need it; as it was before once this is dropped.
struct Terminal;

impl Terminal {
    fn take() -> io::Result<Self> {
        terminal::enable_raw_mode()?;
        // From here on it is given back, whatever fails.
        let terminal = Self;
        execute!(io::stdout(), EnterAlternateScreen, Hide)?;
        Ok(terminal)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Nothing is left to tell of an error on.
        let _ = execute!(io::stdout(), Show, LeaveAlternateScreen);
        let _ = terminal::disable_raw_mode();
    }
}

/// What is to be seen.
struct Screen {
    before: Option<Status>,
    now: Status,
    trouble: Option<String>,
    view: View,
    palette: Palette,
}

impl Screen {
    /// A new status, or the reason why there is none: then the last one stays.
    fn take(&mut self, answer: Result<Status, Failure>) {
        match answer {
            Ok(status) => {
                self.trouble = None;
                // A snapshot of a busy agent may come twice.
                if status.node.at != self.now.node.at {
                    let same = status.node.pid == self.now.node.pid;
                    let before = std::mem::replace(&mut self.now, status);
                    self.before = same.then_some(before);
                }
            }
            Err(failure) => self.trouble = Some(failure.to_string()),
        }
    }

    fn lines(&self, size: view::Size) -> Vec<String> {
        let pair = Pair {
            before: self.before.as_ref(),
            now: &self.now,
        };
        let trouble = self.trouble.as_deref();
        view::render(pair, trouble, api::now(), self.view, size, self.palette)
    }

    /// Overwrites the last frame, in one piece so that nothing flickers.
    fn draw(&self) -> io::Result<()> {
        let (width, height) = terminal::size()?;
        let (width, height) = (usize::from(width), usize::from(height));
        let help = "q quit  p pause  s sort  arrows scroll and sort";
        let mut lines = self.lines(Some((width, height.saturating_sub(1))));
        lines.resize(height.saturating_sub(1), String::new());
        let help: String = help.chars().take(width).collect();
        lines.push(self.palette.faint(&help));
        let mut frame = Vec::new();
        for (row, line) in (0..).zip(&lines) {
            queue!(
                frame,
                MoveTo(0, row),
                Print(line),
                Clear(ClearType::UntilNewLine)
            )?;
        }
        let mut out = io::stdout().lock();
        out.write_all(&frame)?;
        out.flush()
    }

    /// Does what a key is for; whether it is the end.
    fn pressed(&mut self, event: &Event) -> bool {
        let Event::Key(key) = event else {
            return false;
        };
        if key.kind == KeyEventKind::Release {
            return false;
        }
        let view = &mut self.view;
        let last = view::length(&self.now);
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return true,
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('p' | ' ') => view.paused = !view.paused,
            KeyCode::Char('s') | KeyCode::Right => view.sort = view.sort.turn(1),
            KeyCode::Left => view.sort = view.sort.turn(-1),
            KeyCode::Up => view.scroll = view.scroll.saturating_sub(1),
            KeyCode::Down => view.scroll = (view.scroll + 1).min(last),
            KeyCode::PageUp => view.scroll = view.scroll.saturating_sub(10),
            KeyCode::PageDown => view.scroll = (view.scroll + 10).min(last),
            KeyCode::Home => view.scroll = 0,
            KeyCode::End => view.scroll = last,
            _ => {}
        }
        false
    }
}
