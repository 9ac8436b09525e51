//! Results inside a page of the documentation.

use std::path::Path;

use anyhow::{Context, Result};

/// Puts `text` between the lines `<!-- results of NAME -->` and `<!-- end -->` of a page.
///
/// # Errors
/// If the page cannot be read or written, or has no such lines.
pub fn replace(path: &Path, name: &str, text: &str) -> Result<()> {
    let page =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let page = replaced(&page, name, text).with_context(|| {
        format!(
            "{} has no line `<!-- results of {name} -->` with a line `<!-- end -->` after it",
            path.display()
        )
    })?;
    std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?;
    println!("written into {}", path.display());
    Ok(())
}

fn replaced(page: &str, name: &str, text: &str) -> Option<String> {
    let start = format!("<!-- results of {name} -->\n");
    let (before, rest) = page.split_once(&start)?;
    let (_, after) = rest.split_once("<!-- end -->")?;
    Some(format!("{before}{start}{text}<!-- end -->{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_lines_is_replaced() {
        let page = "a\n<!-- results of x -->\nold\n<!-- end -->\nb\n<!-- end -->\n";
        let new = "a\n<!-- results of x -->\nnew\n<!-- end -->\nb\n<!-- end -->\n";
        assert_eq!(replaced(page, "x", "new\n").as_deref(), Some(new));
        assert_eq!(replaced(page, "y", "new\n"), None);
    }
}
