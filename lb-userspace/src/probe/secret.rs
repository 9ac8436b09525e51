//! Passwords, kept in files of their own so that the configuration can be shown.

use std::path::Path;

use super::failure::Failure;

/// The first line of the file at `path`. Read for each probe, so that a changed one is used at once.
///
/// # Errors
/// [`Failure::internal`]: the file cannot be read, or its first line is empty.
pub async fn read(path: &Path) -> Result<String, Failure> {
    let bad = |what: String| {
        Failure::internal(format!(
            "{what} the password file {}; see `password_file` in the service's health section",
            path.display()
        ))
    };
    let text = tokio::fs::read_to_string(path)
        .await
        .map_err(|error| bad(format!("{error}: cannot read")))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        Some(_) | None => Err(bad("no password in the first line of".to_owned())),
    }
}
