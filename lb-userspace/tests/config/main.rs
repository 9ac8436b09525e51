//! The configuration through its public face: wrong files against the errors they must give, good
//! files, and mutated ones.
//!
//! `LB_BLESS=1 cargo test -p lb-userspace --test config` writes the expected errors anew; read the
//! difference before committing it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lb_userspace::config::check::{LINTS, check};
use lb_userspace::config::{self, ConfigError};
use proptest::prelude::*;

mod page;
mod read;

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(folder);
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    files.sort();
    files
}

#[test]
fn wrong_files_are_refused_as_written_down() {
    let files = files("bad-config");
    assert!(files.len() > 40, "{} files", files.len());
    let mut wrong = Vec::new();
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let error = match config::load(&path) {
            Ok(_) => {
                wrong.push(format!("{name}: accepted"));
                continue;
            }
            Err(error) => error.to_string(),
        };
        let error = error.replace(&path.display().to_string(), name);
        let expected = path.with_extension("stderr");
        if std::env::var_os("LB_BLESS").is_some() {
            std::fs::write(&expected, &error).unwrap();
        }
        let expected = std::fs::read_to_string(&expected).unwrap_or_default();
        if error != expected {
            wrong.push(format!("{name}: got\n{error}\nexpected\n{expected}"));
        }
        // Whatever the text: each error has a place and a mend.
        let count = |what: &str| error.lines().filter(|line| line.contains(what)).count();
        let errors = error
            .lines()
            .filter(|line| line.starts_with("error: "))
            .count();
        assert!(errors > 0, "{name}: {error}");
        assert_eq!(count(&format!("--> {name}:")), errors, "{name}: {error}");
        assert_eq!(count(" = help: "), errors, "{name}: {error}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn files_that_cannot_be_read_say_so() {
    let missing = config::load(Path::new("/nonexistent/lb.toml")).unwrap_err();
    let text = missing.to_string();
    assert!(
        text.contains("/nonexistent/lb.toml cannot be read"),
        "{text}"
    );
    assert!(text.contains("help: check the path"), "{text}");

    let folder = tempfile::tempdir().unwrap();
    let text = config::load(folder.path()).unwrap_err().to_string();
    assert!(text.contains("is a directory"), "{text}");
    assert!(text.contains("help:"), "{text}");
}

fn good(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/good-config")
        .join(name);
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn every_warning_is_given_where_it_should_be_and_nowhere_else() {
    let report = check(&good("warned.toml"), "warned.toml").unwrap();
    let mut rendered = String::new();
    for warning in &report.warnings {
        rendered += &warning.render("warned.toml");
        rendered.push('\n');
    }
    let expected = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/good-config/warned.stderr");
    if std::env::var_os("LB_BLESS").is_some() {
        std::fs::write(&expected, &rendered).unwrap();
    }
    assert_eq!(rendered, std::fs::read_to_string(expected).unwrap());

    let given: BTreeSet<_> = report
        .warnings
        .iter()
        .filter_map(|warning| warning.id)
        .collect();
    for (id, _) in LINTS {
        if *id != "no-services" {
            assert!(given.contains(id), "{id} is not shown by warned.toml");
        }
    }
    assert!(
        given
            .iter()
            .all(|id| LINTS.iter().any(|(known, _)| known == id))
    );

    let empty = check("[node]\ninterfaces = [\"eth0\"]\n", "empty").unwrap();
    assert_eq!(empty.warnings[0].id, Some("no-services"));
}

#[test]
fn lb_check_tells_by_its_exit_code() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let run = |file: &str, strict| lb_userspace::cli::check::run(&folder.join(file), strict, true);
    assert_eq!(run("good-config/warned.toml", false), 0);
    assert_eq!(run("good-config/warned.toml", true), 1);
    assert_eq!(run("bad-config/bad-path.toml", false), 2);
    assert_eq!(run("no-such-file.toml", true), 2);
}

proptest! {
    /// Whatever is done to a file, it is read or refused with a place inside it.
    #[test]
    fn no_file_makes_it_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..20, "[\\[\\]\"=a-z0-9.:\\-\n {},#é\t]{0,4}"), 1..6)
    ) {
        let mut text = good("contract.toml");
        for (at, remove, insert) in edits {
            let at = text.floor_char_boundary(at.index(text.len()));
            let end = text.floor_char_boundary((at + remove).min(text.len()));
            text.replace_range(at..end.max(at), &insert);
        }
        match check(&text, "lb.toml") {
            Ok(_) => {}
            Err(ConfigError::Invalid { errors, .. }) => {
                prop_assert!(!errors.is_empty());
                for error in errors {
                    prop_assert!(error.line <= text.lines().count() + 1);
                    prop_assert!(!error.help.is_empty());
                    prop_assert!(!error.message.contains("defect"), "{}", error.message);
                }
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

#[test]
fn headroom_is_judged_by_what_the_others_must_carry() {
    // (weight, tier) of each backend, panic_threshold, whether it is warned of
    for (backends, panic, warned) in [
        (&[(100, 0), (100, 0)][..], 50, false),
        (&[(100, 0), (100, 0)], 60, true),
        (&[(101, 0), (100, 0)], 0, true),
        (&[(100, 0), (50, 0), (50, 0)], 50, false),
        (&[(300, 0), (100, 0), (100, 0)], 0, true),
        (&[(300, 0), (100, 0), (100, 1)], 50, false),
        (&[(100, 0), (0, 0)], 0, true),
        (&[(100, 0), (100, 0), (100, 0)], 70, true),
    ] {
        let smallest = good("smallest.toml");
        let (head, _) = smallest.split_once("[[service.backend]]").unwrap();
        let mut text = format!("{head}panic_threshold = {panic}\n");
        for (index, (weight, tier)) in backends.iter().enumerate() {
            text += &format!(
                "[[service.backend]]\naddress = \"10.0.0.{}:25\"\nweight = {weight}\ntier = {tier}\n",
                index + 11
            );
        }
        let report = check(&text, "lb.toml").unwrap_or_else(|error| panic!("{error}"));
        let found = (report.warnings.iter()).any(|warning| warning.id == Some("no-headroom"));
        assert_eq!(
            found, warned,
            "{backends:?} {panic}: {:#?}",
            report.warnings
        );
    }
}

#[test]
fn a_file_may_not_have_more_than_the_tables_hold() {
    let mut text = String::from("[node]\ninterfaces = [\"eth0\"]\n");
    for index in 0..1024 {
        text += &format!(
            "[[service]]\nname = \"s{index}\"\naddress = \"203.0.113.10:{}\"\n\
             [[service.backend]]\naddress = \"10.0.0.11:80\"\n",
            index + 1
        );
    }
    let error = config::parse(&text, "lb.toml").unwrap_err().to_string();
    assert!(
        error.starts_with("error: 1024 services are more than 1023"),
        "{error}"
    );
    let (fewer, _) = text.rsplit_once("[[service]]").unwrap();
    assert_eq!(
        config::parse(fewer, "lb.toml").unwrap().services.len(),
        1023
    );
}

#[test]
fn a_file_that_is_wrong_throughout_is_refused_in_short() {
    let mut text = good("smallest.toml");
    for _ in 0..20_000 {
        text += "[[service.backend]]\naddres = 1\n";
    }
    let Err(ConfigError::Invalid { errors, more, .. }) = config::parse(&text, "lb.toml") else {
        panic!("accepted")
    };
    assert_eq!(errors.len(), 200);
    assert!(more > 39_000, "{more}");
    assert!(errors.is_sorted_by_key(|error| error.line));
}
