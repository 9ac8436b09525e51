//! Lines, commands and their words.

use super::Refused;

/// A command that is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    DisableHealth,
    DisableServer,
    EnableHealth,
    EnableServer,
    GetWeight,
    SetServer,
    SetWeight,
    ShowBackend,
    ShowInfo,
    ShowServersConn,
    ShowServersState,
    ShowStat,
    ShowVersion,
    Help,
    Prompt,
    Quit,
}

/// Words, usage and meaning of each, in the order of `help`.
const COMMANDS: &[(&[&str], &str, &str, Verb)] = &[
    (
        &["disable", "health"],
        "disable health <bk>/<srv>",
        "stop probing a server, which keeps its health",
        Verb::DisableHealth,
    ),
    (
        &["disable", "server"],
        "disable server <bk>/<srv>",
        "disable a server for maintenance, as 'set server'",
        Verb::DisableServer,
    ),
    (
        &["enable", "health"],
        "enable health <bk>/<srv>",
        "probe a server again",
        Verb::EnableHealth,
    ),
    (
        &["enable", "server"],
        "enable server <bk>/<srv>",
        "enable a disabled server, as 'set server'",
        Verb::EnableServer,
    ),
    (
        &["get", "weight"],
        "get weight <bk>/<srv>",
        "report a server's current weight",
        Verb::GetWeight,
    ),
    (
        &["set", "server"],
        "set server <bk>/<srv> [opts]",
        "change a server's state, weight or health",
        Verb::SetServer,
    ),
    (
        &["set", "weight"],
        "set weight <bk>/<srv> <weight>[%]",
        "change a server's weight, as 'set server'",
        Verb::SetWeight,
    ),
    (
        &["show", "backend"],
        "show backend",
        "list services",
        Verb::ShowBackend,
    ),
    (
        &["show", "info"],
        "show info",
        "report information about the agent",
        Verb::ShowInfo,
    ),
    (
        &["show", "servers", "conn"],
        "show servers conn [<backend>]",
        "dump server connections status (all or for a single backend)",
        Verb::ShowServersConn,
    ),
    (
        &["show", "servers", "state"],
        "show servers state [<backend>]",
        "dump volatile server information (all or for a single backend)",
        Verb::ShowServersState,
    ),
    (
        &["show", "stat"],
        "show stat [no-maint|up]*",
        "report counters for each service and server",
        Verb::ShowStat,
    ),
    (
        &["show", "version"],
        "show version",
        "show version of the agent",
        Verb::ShowVersion,
    ),
    (
        &["help"],
        "help [<command>]",
        "list matching or all commands",
        Verb::Help,
    ),
    (
        &["prompt"],
        "prompt",
        "toggle interactive mode with prompt",
        Verb::Prompt,
    ),
    (&["quit"], "quit", "disconnect", Verb::Quit),
];

/// What a command turns out to be; a known one with the words after its own.
pub enum Line<'w> {
    Known(Verb, &'w [String]),
    Unknown,
}

/// The commands of a line and their words: divided by `;` and by spaces, unless a backslash is before
/// them.
pub fn split(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut characters = line.trim_end_matches(['\r', '\n']).chars();
    let end = |word: &mut Option<String>, commands: &mut Vec<Vec<String>>| {
        if let (Some(word), Some(last)) = (word.take(), commands.last_mut()) {
            last.push(word);
        }
    };
    while let Some(character) = characters.next() {
        match character {
            ';' => {
                end(&mut word, &mut commands);
                commands.push(Vec::new());
            }
            ' ' | '\t' => end(&mut word, &mut commands),
            '\\' => word.get_or_insert_default().extend(characters.next()),
            other => word.get_or_insert_default().push(other),
        }
    }
    end(&mut word, &mut commands);
    commands
}

/// Which command it is.
pub fn parse(words: &[String]) -> Line<'_> {
    let said = |own: &[&str]| {
        own.iter()
            .zip(words)
            .filter(|(own, word)| **own == **word)
            .count()
    };
    match COMMANDS.iter().find(|(own, ..)| said(own) == own.len()) {
        Some((own, _, _, verb)) => Line::Known(*verb, &words[own.len()..]),
        None => Line::Unknown,
    }
}

/// The answer to `help`: the commands that begin with these words, or all.
pub fn help(words: &[String]) -> String {
    list("The following commands are valid at this level:", words)
}

/// The answer to what is no command.
pub fn unknown(words: &[String]) -> String {
    let begins = |first: &String| {
        COMMANDS
            .iter()
            .any(|(own, ..)| own.first() == Some(&&**first))
    };
    match words {
        [first, ..] if begins(first) => list(
            "Unknown command, but maybe one of the following ones is a better match:",
            &words[..1],
        ),
        _ => list(
            "Unknown command. Please enter one of the following commands only:",
            &[],
        ),
    }
}

fn list(title: &str, words: &[String]) -> String {
    let mut text = format!("{title}\n");
    for (own, usage, help, verb) in COMMANDS {
        let asked = own.iter().zip(words).all(|(own, word)| *own == *word);
        // These three are always among them.
        if asked || matches!(verb, Verb::Help | Verb::Prompt | Verb::Quit) {
            text.push_str(&format!("  {usage:<40}: {help}\n"));
        }
    }
    text
}

/// A weight as it is written: a number, or percent of the initial weight. The limit is lb's, 65,535,
/// where HAProxy's is 256; all else is as there.
pub fn weight(text: &str, initial: u32) -> Result<u32, Refused> {
    let most = i64::from(u16::MAX);
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let length = digits.bytes().take_while(u8::is_ascii_digit).count();
    if length == 0 {
        return Err("Empty weight string empty or preceded by garbage".into());
    }
    let (number, rest) = text.split_at(text.len() - digits.len() + length);
    // Digits beyond the range are out of any range that follows.
    let number: i64 = number.trim_start_matches('+').parse().unwrap_or(i64::MAX);
    let weight = match rest {
        "%" if number < 0 => return Err("Relative weight must be positive.".into()),
        "%" => (i64::from(initial).saturating_mul(number) / 100).min(most),
        _ if !(0..=most).contains(&number) => {
            return Err(Refused(format!(
                "Absolute weight can only be between 0 and {most} inclusive."
            )));
        }
        "" => number,
        _ => return Err("Trailing garbage in weight string".into()),
    };
    u32::try_from(weight).map_err(|_| "Weight out of range.".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_divided_as_haproxy_does() {
        let split = |line| -> Vec<Vec<String>> { super::split(line) };
        assert_eq!(
            split("set server web/b1 state  drain;show info\r\n"),
            [
                vec!["set", "server", "web/b1", "state", "drain"],
                vec!["show", "info"]
            ]
        );
        assert_eq!(split("a\\;b \\\\ c\\ d\n"), [vec!["a;b", "\\", "c d"]]);
        assert_eq!(split("show info;\n").len(), 2, "an empty one is one, too");
        assert_eq!(split("\n"), [Vec::<String>::new()]);
    }

    #[test]
    fn weights_are_read_as_haproxy_does() {
        let read = |text| weight(text, 50).map_err(|refused| refused.0);
        assert_eq!(read("0"), Ok(0));
        assert_eq!(read("300"), Ok(300));
        assert_eq!(read("+7"), Ok(7));
        assert_eq!(read("65535"), Ok(65535));
        assert_eq!(read("50%"), Ok(25));
        assert_eq!(read("0%"), Ok(0));
        assert_eq!(read("9999999999999999999%"), Ok(65535));
        for (text, error) in [
            ("65536", "Absolute weight can only be between"),
            ("-1", "Absolute weight can only be between"),
            (
                "99999999999999999999",
                "Absolute weight can only be between",
            ),
            ("-5%", "Relative weight must be positive."),
            ("", "Empty weight string"),
            ("%", "Empty weight string"),
            ("abc", "Empty weight string"),
            ("12x", "Trailing garbage"),
            ("12%%", "Trailing garbage"),
        ] {
            assert!(read(text).unwrap_err().starts_with(error), "{text}");
        }
    }
}
