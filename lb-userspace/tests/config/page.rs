//! The reference page, against the schema.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lb_userspace::config::check::{LINTS, check};
use lb_userspace::config::schema::{Fallback, SECTIONS, Section};

fn page_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/config.md")
}

/// The reference table of a section, from the schema.
fn key_table(section: &Section) -> String {
    let mut table = String::from("| key | type | default | meaning |\n| --- | --- | --- | --- |\n");
    for key in section.keys {
        let default = match key.default {
            Fallback::Required => "required".into(),
            Fallback::Value(value) => format!("`{value}`"),
            Fallback::Derived(words) | Fallback::Absent(words) => words.into(),
        };
        let kind = key.kind.describe();
        table += &format!("| `{}` | {kind} | {default} | {} |\n", key.name, key.help);
    }
    table
}

#[test]
fn the_reference_page_tells_what_the_program_does() {
    let mut wanted: Vec<(String, String)> = SECTIONS
        .iter()
        .filter(|section| !section.keys.is_empty())
        .map(|section| (format!("keys of {}", section.header), key_table(section)))
        .collect();
    let mut lints = String::from("| warning | is given when |\n| --- | --- |\n");
    for (id, help) in LINTS {
        lints += &format!("| `{id}` | {help} |\n");
    }
    wanted.push(("warnings".into(), lints));

    let mut page = std::fs::read_to_string(page_path()).unwrap();
    for (mark, table) in &wanted {
        let start = format!("<!-- {mark} -->\n");
        let from = page.find(&start).unwrap_or_else(|| panic!("no {start}")) + start.len();
        let to = from + page[from..].find("<!-- end -->").unwrap();
        if std::env::var_os("LB_BLESS").is_some() {
            page.replace_range(from..to, table);
            std::fs::write(page_path(), &page).unwrap();
        } else {
            assert_eq!(&page[from..to], table, "docs/config.md, {mark}");
        }
    }
    assert_eq!(page.matches("<!-- end -->").count(), wanted.len());
}

#[test]
fn the_example_of_the_reference_page_is_valid_and_free_of_warnings() {
    let page = std::fs::read_to_string(page_path()).unwrap();
    let example = page.split("```toml\n").nth(1).unwrap();
    let example = example.split("```").next().unwrap();
    let report = check(example, "example").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(report.warnings, []);
    assert_eq!(report.model.services.len(), 2);
    assert_eq!(report.services[1].probe, "grpc");
}

#[test]
fn no_key_is_twice_in_a_section() {
    for section in SECTIONS {
        let names: BTreeSet<_> = section.keys.iter().map(|key| key.name).collect();
        assert_eq!(names.len(), section.keys.len(), "{}", section.header);
        assert!(section.tables.iter().all(|table| !names.contains(table)));
    }
}
