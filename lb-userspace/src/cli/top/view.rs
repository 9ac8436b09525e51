//! One frame of `lb top`. Pure: statuses in, lines out.

use jiff::Timestamp;

use super::rates::{Pair, Rate, Rates, short};
use crate::api::status::{BackendStatus, Health, Routing, ServiceStatus, Status};
use crate::cli::columns::{Columns, last_probe, not_followed, old};
use crate::cli::output::{Palette, span, tame};

/// What rows are sorted by: numbers from the largest down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Sort {
    /// As configured.
    #[default]
    Config,
    Packets,
    Bytes,
    New,
    Flows,
}

impl Sort {
    const ALL: [Self; 5] = [
        Self::Config,
        Self::Packets,
        Self::Bytes,
        Self::New,
        Self::Flows,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Packets => "packets",
            Self::Bytes => "bytes",
            Self::New => "new",
            Self::Flows => "flows",
        }
    }

    /// The one so many places further on, in a circle.
    pub fn turn(self, places: isize) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        let count = Self::ALL.len() as isize;
        Self::ALL[(at as isize + places).rem_euclid(count) as usize]
    }
}

/// What the user has chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    pub sort: Sort,
    pub paused: bool,
    /// Lines below the head that are scrolled past.
    pub scroll: usize,
}

/// What the frame must fit into; `None`: as much as it takes.
pub type Size = Option<(usize, usize)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Plain,
    Good,
    Soft,
    Bad,
    Shout,
    Strong,
    Faint,
}

/// Text in pieces of one style each, so that it can be cut by what is seen of it.
#[derive(Default)]
struct Line(Vec<(Style, String)>);

impl Line {
    fn of(style: Style, text: impl Into<String>) -> Self {
        Self::default().and(style, text)
    }

    fn and(mut self, style: Style, text: impl Into<String>) -> Self {
        self.0.push((style, text.into()));
        self
    }

    fn paint(&self, width: usize, palette: Palette) -> String {
        let mut left = width;
        let mut line = String::new();
        for (style, text) in &self.0 {
            let text: String = text.chars().take(left).collect();
            left -= text.chars().count();
            line.push_str(&match style {
                Style::Plain => text,
                Style::Good => palette.good(&text),
                Style::Soft => palette.soft(&text),
                Style::Bad => palette.bad(&text),
                Style::Shout => palette.shout(&text),
                Style::Strong => palette.strong(&text),
                Style::Faint => palette.faint(&text),
            });
        }
        line
    }
}

const HEADER: [&str; 9] = [
    "BACKEND",
    "ROUTING",
    "HEALTH",
    "SLOTS",
    "PACKETS/s",
    "BYTES/s",
    "NEW/s",
    "FLOWS",
    "LAST PROBE",
];
/// Columns of numbers, aligned to the right.
const NUMBERS: std::ops::Range<usize> = 3..8;

/// A backend's or a service's row.
struct Row {
    cells: [String; 9],
    styles: [Style; 9],
    rates: Rates,
    flows: u64,
}

impl Row {
    fn key(&self, sort: Sort) -> f64 {
        match sort {
            Sort::Config => 0.0,
            Sort::Packets => self.rates.packets.unwrap_or(0.0),
            Sort::Bytes => self.rates.bytes.unwrap_or(0.0),
            Sort::New => self.rates.new_flows.unwrap_or(0.0),
            Sort::Flows => self.flows as f64,
        }
    }
}

/// A service with its rows, the first its own.
struct Block {
    rows: Vec<Row>,
    notes: Vec<Line>,
}

/// The frame as seen at `now`, its lines painted and cut to `size`. `trouble`: why there is no newer
/// status.
pub fn render(
    pair: Pair<'_>,
    trouble: Option<&str>,
    now: Timestamp,
    view: View,
    size: Size,
    palette: Palette,
) -> Vec<String> {
    let (width, height) = size.unwrap_or((usize::MAX, usize::MAX));
    let mut head = head(pair, trouble, now, view);
    let mut blocks: Vec<Block> = pair
        .now
        .services
        .iter()
        .map(|service| block(pair, service, now, view.sort))
        .collect();
    // Stable: what is equal stays as configured.
    blocks.sort_by(|a, b| {
        b.rows[0]
            .key(view.sort)
            .total_cmp(&a.rows[0].key(view.sort))
    });
    let rows = blocks.iter().flat_map(|block| &block.rows);
    let columns = Columns::new(&HEADER, rows.map(|row| &row.cells), NUMBERS);
    let header = columns.fill(&HEADER.map(str::to_owned));
    head.push(row(header, &[Style::Faint; 9]));
    let mut body = Vec::new();
    for block in &blocks {
        let rows = block.rows.iter();
        body.extend(rows.map(|r| row(columns.fill(&r.cells), &r.styles)));
        body.extend(block.notes.iter().map(|note| Line(note.0.clone())));
    }
    if blocks.is_empty() {
        body.push(Line::of(Style::Soft, "no services are configured"));
    }
    let room = height.saturating_sub(head.len());
    // Never past the last full screen.
    let skip = view.scroll.min(body.len().saturating_sub(room));
    let shown = head.iter().chain(body.iter().skip(skip));
    shown
        .take(height)
        .map(|line| line.paint(width, palette))
        .collect()
}

/// At most so many lines can be scrolled past.
pub fn length(status: &Status) -> usize {
    let services = status.services.iter();
    services.map(|service| 2 + service.backends.len()).sum()
}

fn head(pair: Pair<'_>, trouble: Option<&str>, now: Timestamp, view: View) -> Vec<Line> {
    let node = &pair.now.node;
    let (style, state) = match node {
        node if node.ready() => (Style::Good, "ready"),
        node if node.draining => (Style::Soft, "shutting down"),
        node if !node.attached => (Style::Bad, "not attached"),
        node if !node.first_round_done => (Style::Soft, "starting"),
        _ => (Style::Bad, "not ready"),
    };
    let mut first = Line::of(Style::Strong, format!("lb {}", tame(&node.version)))
        .and(Style::Plain, "  ")
        .and(style, state)
        .and(
            Style::Plain,
            format!(
                "  up {}  flows {}/{}  sorted by {}",
                span(node.uptime_seconds),
                node.flows.used,
                node.flows.capacity,
                view.sort.name()
            ),
        );
    if node.capturing {
        first = first.and(Style::Soft, "  capturing");
    }
    if view.paused {
        first = first.and(Style::Plain, "  ").and(Style::Shout, "PAUSED");
    }
    let mut lines = vec![first];
    let mut warn = |text: String| lines.push(Line::of(Style::Shout, format!("!! {text}")));
    let stale = || old(node, now).filter(|_| !view.paused);
    trouble.map(tame).or_else(stale).map(&mut warn);
    not_followed(node).map(&mut warn);
    if let Some(refused) = refused(pair.refused_of_none()) {
        let text = format!("of no service: {refused}");
        lines.push(Line::of(Style::Soft, text));
    }
    lines
}

fn block(pair: Pair<'_>, service: &ServiceStatus, now: Timestamp, sort: Sort) -> Block {
    let mut backends: Vec<Row> = service
        .backends
        .iter()
        .map(|backend| backend_row(backend, pair.backend(service, backend), now))
        .collect();
    let rates = backends.iter().map(|row| row.rates);
    let rates = rates.fold(Rates::default(), Rates::plus);
    let flows = backends.iter().map(|row| row.flows).sum();
    let mut backends_of = service.backends.iter();
    let no_backend =
        !service.backends.is_empty() && !backends_of.any(BackendStatus::takes_new_flows);
    let (style, state) = match service {
        service if service.panic => (Style::Shout, "PANIC".to_owned()),
        _ if no_backend => (Style::Shout, "NO BACKEND".to_owned()),
        service => (Style::Plain, format!("{:.0} %", service.healthy_percent)),
    };
    let title = format!(
        "{} {} {}",
        tame(&service.protocol),
        tame(&service.address),
        tame(&service.forwarding)
    );
    let mut own = row_of(rates, flows);
    own.cells[0] = tame(&service.name);
    own.cells[2] = state;
    own.cells[8] = title;
    own.styles = [Style::Strong; 9];
    own.styles[2] = style;
    own.styles[8] = Style::Faint;
    backends.sort_by(|a, b| b.key(sort).total_cmp(&a.key(sort)));
    let note = refused(pair.refused(service));
    Block {
        rows: std::iter::once(own).chain(backends).collect(),
        notes: note
            .map(|text| Line::of(Style::Bad, format!("  refused: {text}")))
            .into_iter()
            .collect(),
    }
}

fn row_of(rates: Rates, flows: u64) -> Row {
    let shown = |rate: Rate| rate.map_or("-".to_owned(), short);
    let mut cells: [String; 9] = Default::default();
    cells[4] = shown(rates.packets);
    cells[5] = shown(rates.bytes);
    cells[6] = shown(rates.new_flows);
    cells[7] = flows.to_string();
    Row {
        cells,
        styles: [Style::Plain; 9],
        rates,
        flows,
    }
}

fn backend_row(backend: &BackendStatus, rates: Rates, now: Timestamp) -> Row {
    let mut row = row_of(rates, backend.active_flows);
    row.cells[0] = format!("  {}", tame(&backend.name));
    row.cells[1] = backend.routing.name().to_owned();
    row.cells[2] = backend.health.name().to_owned();
    row.cells[3] = backend.slots.to_string();
    row.cells[8] = match &backend.disagreement {
        _ if backend.unresolved => "NO NEXT HOP: packets to it are dropped".to_owned(),
        Some(what) => format!("but its traffic: {}", tame(what)),
        None => last_probe(backend, now),
    };
    row.styles[1] = match backend.routing {
        Routing::Active => Style::Good,
        Routing::Draining | Routing::Standby => Style::Soft,
        Routing::Out | Routing::Panic => Style::Bad,
    };
    row.styles[2] = match backend.health {
        Health::Healthy => Style::Good,
        Health::Unknown => Style::Soft,
        Health::Unhealthy => Style::Bad,
    };
    if backend.unresolved || backend.disagreement.is_some() {
        row.styles[8] = Style::Bad;
    }
    row
}

fn row(cells: [String; 9], styles: &[Style; 9]) -> Line {
    let mut line = Line::default();
    for (column, (cell, style)) in cells.into_iter().zip(styles).enumerate() {
        if column > 0 {
            line = line.and(Style::Plain, "  ");
        }
        line = line.and(*style, cell);
    }
    line
}

fn refused(rates: Vec<(String, f64)>) -> Option<String> {
    let told: Vec<String> = rates
        .iter()
        .map(|(label, rate)| format!("{} {}/s", tame(label), short(*rate)))
        .collect();
    (!told.is_empty()).then(|| told.join(", "))
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
