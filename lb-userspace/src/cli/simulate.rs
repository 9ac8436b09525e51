//! `lb simulate`: a recorded trace in, the changes that follow from it out.

use std::path::Path;

use super::{Failure, output};
use crate::config;
use crate::simulate::{read, replay};

/// Replays the whole trace, or nothing of it if a line is wrong.
pub(super) fn run(config: &Path, trace: &Path) -> Result<u8, Failure> {
    let model = config::load(config)?.model;
    let trace = read(trace, &model)?;
    let mut text = String::new();
    for change in replay(&model, &trace) {
        text += &serde_json::to_string(&change).map_err(std::io::Error::from)?;
        text.push('\n');
    }
    output::print(&text)?;
    Ok(0)
}
