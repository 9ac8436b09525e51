//! Reads what `cargo test` prints, and sums it up.

use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;

use crate::command::root;

/// Kinds of tests, in the order of the summary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    #[default]
    Unit,
    Property,
    Doc,
    Integration,
    Program,
    EndToEnd,
    /// Under another kernel, in a virtual machine.
    Kernel,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Unit,
        Self::Property,
        Self::Doc,
        Self::Integration,
        Self::Program,
        Self::EndToEnd,
        Self::Kernel,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Property => "property",
            Self::Doc => "documentation",
            Self::Integration => "integration",
            Self::Program => "XDP program",
            Self::EndToEnd => "end-to-end",
            Self::Kernel => "other kernel",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// What part of a test program's output the next line belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Section {
    /// One line a test.
    #[default]
    Progress,
    /// What passed tests printed; the name is of the test whose output follows.
    Successes(String),
    /// What failed tests printed.
    Failures,
}

/// Counts by kind, and the names that a reader wants to see.
#[derive(Debug, Default)]
pub struct Report {
    /// Kind of the test program that runs, before the test's name is looked at.
    target: Kind,
    program: String,
    section: Section,
    /// Tests of the present program whose lines were read.
    seen: Count,
    counts: BTreeMap<Kind, Count>,
    failures: Vec<String>,
    skips: Vec<String>,
}

impl Report {
    /// Takes in one line; whether it is worth showing.
    pub fn note(&mut self, line: &str) -> bool {
        if let Some(target) = line.trim_start().strip_prefix("Running ") {
            self.program = target.split(" (").next().unwrap_or(target).to_owned();
            self.begin(kind_of_target(&self.program));
            return true;
        }
        if let Some(package) = line.trim_start().strip_prefix("Doc-tests ") {
            self.program = format!("documentation of {package}");
            self.begin(Kind::Doc);
            return true;
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            self.settle(result);
            self.section = Section::Progress;
            return true;
        }
        match line {
            "successes:" => self.section = Section::Successes(String::new()),
            "failures:" => self.section = Section::Failures,
            _ => return self.inside(line),
        }
        !matches!(self.section, Section::Successes(_))
    }

    fn inside(&mut self, line: &str) -> bool {
        match &mut self.section {
            Section::Progress => {
                if let Some(rest) = line.strip_prefix("test ")
                    && let Some((name, outcome)) = rest.rsplit_once(" ... ")
                {
                    self.outcome(name.trim_end_matches(" - should panic"), outcome);
                }
                true
            }
            Section::Successes(test) => {
                if let Some(name) = line
                    .strip_prefix("---- ")
                    .and_then(|rest| rest.strip_suffix(" stdout ----"))
                {
                    *test = name.to_owned();
                    return false;
                }
                let test = test.clone();
                if let Some(skip) = line.strip_prefix("SKIPPED ") {
                    self.skip(&test, skip);
                } else if let Some((case, reason)) = line.split_once(": skipped: ") {
                    self.skip(&test, &format!("{case}: {reason}"));
                } else {
                    return false;
                }
                true
            }
            Section::Failures => true,
        }
    }

    fn begin(&mut self, target: Kind) {
        self.target = target;
        self.section = Section::Progress;
        self.seen = Count::default();
    }

    /// Takes the totals of a test program for tests whose own lines could not be read, because
    /// something else was printed in their midst.
    fn settle(&mut self, result: &str) {
        let number = |word: &str| {
            let part = result.split("; ").find(|part| part.ends_with(word))?;
            let number = part.trim_end_matches(word).trim();
            number.rsplit(' ').next()?.parse::<usize>().ok()
        };
        let count = self.counts.entry(self.target).or_default();
        let missed = |word, seen: usize| number(word).unwrap_or(0).saturating_sub(seen);
        count.passed += missed("passed", self.seen.passed);
        count.skipped += missed("ignored", self.seen.skipped);
        let failed = missed("failed", self.seen.failed);
        count.failed += failed;
        if failed > 0 {
            self.failures
                .push(format!("{failed} more in {}", self.program));
        }
    }

    fn kind(&self, test: &str) -> Kind {
        let mut segments = test.split("::");
        let says_so =
            |segment: &str| segment.contains("property") || segment.contains("properties");
        if self.target == Kind::Unit && segments.any(says_so) {
            Kind::Property
        } else {
            self.target
        }
    }

    fn outcome(&mut self, test: &str, outcome: &str) {
        let count = self.counts.entry(self.kind(test)).or_default();
        if outcome == "ok" {
            self.seen.passed += 1;
            count.passed += 1;
        } else if let Some(reason) = outcome.strip_prefix("ignored") {
            self.seen.skipped += 1;
            count.skipped += 1;
            let reason = match reason.trim_start_matches([',', ' ']) {
                "" => "ignored",
                reason => reason,
            };
            self.skips.push(format!("{test}: {reason}"));
        } else if outcome == "FAILED" {
            self.seen.failed += 1;
            count.failed += 1;
            self.failures.push(format!("{test} ({})", self.program));
        }
    }

    /// `skip` is `NAME: REASON`. Under the test's own name, with or without its modules, the test
    /// did nothing; under any other it left out one of its cases.
    fn skip(&mut self, test: &str, skip: &str) {
        let last = |path: &str| path.rsplit("::").next().map(str::to_owned);
        let name = skip.split(": ").next().unwrap_or(skip);
        let own = last(test).unwrap_or_default();
        let whole = last(name).is_some_and(|name| name == own);
        let count = self.counts.entry(self.kind(test)).or_default();
        count.skipped += 1;
        if whole {
            count.passed = count.passed.saturating_sub(1);
            self.skips.push(skip.to_owned());
        } else {
            self.skips.push(format!("{own}, case {skip}"));
        }
    }

    fn total(&self) -> Count {
        self.counts
            .values()
            .fold(Count::default(), |sum, count| Count {
                passed: sum.passed + count.passed,
                failed: sum.failed + count.failed,
                skipped: sum.skipped + count.skipped,
            })
    }

    /// Notes something that went wrong beside the tests.
    pub fn fail(&mut self, what: String) {
        self.counts.entry(self.target).or_default().failed += 1;
        self.failures.push(what);
    }

    /// Notes that some tests were left out.
    pub fn leave_out(&mut self, what: String) {
        self.counts.entry(Kind::Kernel).or_default().skipped += 1;
        self.skips.push(what);
    }

    /// Whether tests ran and none failed.
    pub fn exit_code(&self) -> ExitCode {
        if self.failed() == 0 && self.ran() > 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    /// Number of failed tests.
    pub fn failed(&self) -> usize {
        self.total().failed
    }

    /// Number of tests that came to a verdict.
    pub fn ran(&self) -> usize {
        let total = self.total();
        total.passed + total.failed
    }

    /// The totals on one line.
    pub fn closing_line(&self) -> String {
        let total = self.total();
        format!(
            "{} passed, {} failed, {} skipped",
            total.passed, total.failed, total.skipped
        )
    }
}

/// By the path that cargo names, which is relative to a package we are not told.
fn kind_of_target(program: &str) -> Kind {
    if program.starts_with("unittests") {
        Kind::Unit
    } else if program.contains("under Linux") {
        Kind::Kernel
    } else if root().join("tests").join(program).exists() {
        Kind::EndToEnd
    } else if program.starts_with("tests/program") {
        Kind::Program
    } else {
        Kind::Integration
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.skips.is_empty() {
            writeln!(f, "Skipped:")?;
            for skip in &self.skips {
                writeln!(f, "    {skip}")?;
            }
        }
        if !self.failures.is_empty() {
            writeln!(f, "Failed:")?;
            for failure in &self.failures {
                writeln!(f, "    {failure}")?;
            }
        }
        writeln!(
            f,
            "{:<16}{:>8}{:>8}{:>8}",
            "", "passed", "failed", "skipped"
        )?;
        for kind in Kind::ALL {
            if let Some(count) = self.counts.get(&kind)
                && *count != Count::default()
            {
                writeln!(
                    f,
                    "{:<16}{:>8}{:>8}{:>8}",
                    kind.label(),
                    count.passed,
                    count.failed,
                    count.skipped
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "     Running unittests src/lib.rs (target/debug/deps/x-1)

running 4 tests
test plan::steps::tests::a ... ok
test table::properties::balanced ... ok
test slow ... ignored, takes an hour
test broken ... FAILED

successes:

---- plan::steps::tests::a stdout ----
chatter
SKIPPED tls-1: not offered
tls-2: skipped: not offered either


successes:
    plan::steps::tests::a

failures:

---- broken stdout ----
SKIPPED not really: a failed test's words

failures:
    broken

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0s
     Running tests/program/main.rs (target/debug/deps/program-1)
test dsr::forwards ... ok
test nat::opens ... ok

successes:

---- dsr::forwards stdout ----
SKIPPED dsr::forwards: needs root

---- nat::opens stdout ----
SKIPPED opens: needs root
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
   Doc-tests lb_common
test lb-common/src/lib.rs - x (line 3) ... ok
";

    fn read() -> (Report, String) {
        let mut report = Report::default();
        let shown: Vec<&str> = OUTPUT.lines().filter(|line| report.note(line)).collect();
        let shown = shown.join("\n");
        (report, shown)
    }

    #[test]
    fn tests_are_counted_by_kind() {
        let (report, _) = read();
        let count = |kind| {
            let Count {
                passed,
                failed,
                skipped,
            } = report.counts[&kind];
            (passed, failed, skipped)
        };
        assert_eq!(count(Kind::Unit), (1, 1, 3));
        assert_eq!(count(Kind::Property), (1, 0, 0));
        assert_eq!(count(Kind::Program), (0, 0, 2));
        assert_eq!(count(Kind::Doc), (1, 0, 0));
        assert_eq!(report.closing_line(), "3 passed, 1 failed, 5 skipped");
    }

    #[test]
    fn skips_and_failures_are_named() {
        let (report, _) = read();
        assert_eq!(
            report.skips,
            [
                "slow: takes an hour",
                "a, case tls-1: not offered",
                "a, case tls-2: not offered either",
                "dsr::forwards: needs root",
                "opens: needs root",
            ]
        );
        assert_eq!(report.failures, ["broken (unittests src/lib.rs)"]);
    }

    #[test]
    fn what_passed_tests_print_is_not_shown() {
        let (_, shown) = read();
        assert!(!shown.contains("chatter"));
        assert!(shown.contains("test result: FAILED"));
        assert!(shown.contains("---- broken stdout ----"));
    }

    #[test]
    fn the_laboratory_s_tests_are_end_to_end() {
        let mut report = Report::default();
        report.note("     Running tests/health.rs (target/debug/deps/health-1)");
        report.note("test drains ... ok");
        assert_eq!(report.counts[&Kind::EndToEnd].passed, 1);
    }
    #[test]
    fn tests_whose_lines_were_torn_are_counted_all_the_same() {
        let mut report = Report::default();
        report.note("     Running unittests src/lib.rs (target/debug/deps/x-1)");
        report.note("test a ... somebody else's words");
        report.note("test b ... warning: something else");
        report.note("ok");
        report.note("test result: FAILED. 2 passed; 1 failed; 3 ignored; 0 measured");
        assert_eq!(report.closing_line(), "2 passed, 1 failed, 3 skipped");
    }
}
