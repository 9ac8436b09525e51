//! What README.md and docs/ say, held against the program.
//!
//! `LB_BLESS=1 cargo test -p lb-userspace --test pages` writes the table of verdicts anew.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use lb_common::verdict::Verdict;
use lb_userspace::config::check::check;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// README.md and every page of docs/.
fn pages() -> Vec<String> {
    let mut names = vec!["README.md".to_owned()];
    for entry in std::fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            names.push(format!("docs/{name}"));
        }
    }
    names.sort();
    names
}

#[test]
fn the_example_of_the_readme_is_valid_and_free_of_warnings() {
    let page = page("README.md");
    let examples: Vec<&str> = page.split("```toml\n").skip(1).collect();
    assert_eq!(examples.len(), 1);
    let example = examples[0].split("```").next().unwrap();
    let report = check(example, "example").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(report.warnings, []);
    assert_eq!(report.model.services[0].backends.len(), 2);
}

/// The XDP action of a verdict follows from its name.
fn action(verdict: Verdict) -> &'static str {
    match verdict.label().split_once('_').unwrap().0 {
        "pass" => "PASS",
        "drop" => "DROP",
        "reset" | "syn" | "nat" | "too" | "icmp" | "echo" => "TX",
        other => panic!("what is done with {other}_…?"),
    }
}

#[test]
fn every_verdict_is_told_with_its_action_and_meaning() {
    let mut table = String::from("| verdict | action | means |\n| --- | --- | --- |\n");
    for verdict in Verdict::ALL {
        let (label, help) = (verdict.label(), verdict.help().trim());
        table += &format!("| `{label}` | {} | {help} |\n", action(*verdict));
    }
    let name = "docs/architecture.md";
    let mut page = page(name);
    let start = "<!-- verdicts -->\n";
    let from = page.find(start).unwrap() + start.len();
    let to = from + page[from..].find("<!-- end -->").unwrap();
    if std::env::var_os("LB_BLESS").is_some() {
        page.replace_range(from..to, &table);
        std::fs::write(root().join(name), page).unwrap();
    } else {
        assert_eq!(&page[from..to], table, "{name}");
    }
}

/// The program's own list of actions, which is in another workspace and built for another target,
/// so read as text.
#[test]
fn the_actions_of_the_page_are_the_programs() {
    let source = page("lb-ebpf/src/main.rs");
    let body = source.split("fn action(").nth(1).unwrap();
    let body = body.split("\n}\n").next().unwrap();
    let mut found = 0;
    let parts: Vec<&str> = body.split("xdp_action::XDP_").collect();
    for pair in parts.windows(2) {
        let [verdicts, done] = pair else { panic!() };
        for name in verdicts.split("Verdict::").skip(1) {
            let name = name.split(|c: char| !c.is_alphanumeric()).next().unwrap();
            let named = |verdict: &&Verdict| format!("{verdict:?}") == name;
            let verdict = Verdict::ALL.iter().find(named);
            let verdict = verdict.unwrap_or_else(|| panic!("no verdict {name}"));
            let action = action(*verdict);
            assert!(done.starts_with(action), "{name}: {done}");
            found += 1;
        }
    }
    assert_eq!(found, Verdict::ALL.len());
}

#[test]
fn every_map_and_module_is_told() {
    let page = page("docs/architecture.md");
    let source = self::page("lb-ebpf/src/maps.rs");
    let maps: Vec<&str> = source
        .lines()
        .filter_map(|line| line.strip_prefix("pub static "))
        .filter_map(|line| line.split(':').next())
        .collect();
    assert!(maps.len() > 5, "{maps:?}");
    for map in maps {
        assert!(page.contains(&format!("`{map}`")), "map {map}");
    }
    for entry in std::fs::read_dir(root().join("lb-userspace/src")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            assert!(page.contains(&format!("\n| `{name}` | ")), "module {name}");
        }
    }
}

/// An anchor as GitHub makes it of a heading.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    let text: String = heading.to_lowercase().chars().filter(kept).collect();
    text.trim().replace(' ', "-")
}

#[test]
fn every_link_leads_somewhere() {
    let mut links = 0;
    for name in pages() {
        let text = page(&name);
        let folder = root().join(&name).parent().unwrap().to_owned();
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            if link.contains("://") {
                continue;
            }
            links += 1;
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                root().join(&name)
            } else {
                folder.join(file)
            };
            assert!(target.exists(), "{name}: {link}");
            if heading.is_empty() {
                continue;
            }
            let target = std::fs::read_to_string(target).unwrap();
            let mut headings = target.lines().filter(|line| line.starts_with('#'));
            assert!(
                headings.any(|line| anchor(line.trim_start_matches('#').trim()) == heading),
                "{name}: {link}"
            );
        }
    }
    assert!(links > 10, "{links} links");
}
