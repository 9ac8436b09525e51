//! Files of the agent that nobody else may open.
//!
//! Whoever may read a file may lock it (flock(2)), and so keep the next agent from starting.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// For the owner only.
const MODE: u32 = 0o600;

/// Opens the file, or makes it; it is the owner's only then, whatever it was.
///
/// # Errors
/// The system's.
pub fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.create(true).mode(MODE).open(path)?;
    if file.metadata()?.permissions().mode() & 0o777 != MODE {
        file.set_permissions(Permissions::from_mode(MODE))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_private_whatever_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let mode = |file: File| file.metadata().unwrap().permissions().mode() & 0o777;
        let options = || OpenOptions::new().append(true).to_owned();
        assert_eq!(mode(open(&mut options(), &path).unwrap()), MODE);
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(mode(open(&mut options(), &path).unwrap()), MODE);
    }
}
