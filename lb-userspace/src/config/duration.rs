//! Durations as the configuration and the command line write them: `500ms`, `5s`, `1m30s`.

use std::time::Duration;

use thiserror::Error;

/// Units, largest first, in milliseconds.
const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// Longest duration: a year. Beyond it a typo is likelier than a wish.
const LONGEST: u64 = 365 * 86_400_000;

/// Why a text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DurationError {
    #[error("it is empty")]
    Empty,
    #[error("`{0}` has no unit")]
    NoUnit(String),
    #[error("`{0}` is not a unit")]
    UnknownUnit(String),
    #[error("a number is missing before `{0}`")]
    NoNumber(String),
    #[error("units must go from large to small, each at most once")]
    Order,
    #[error("it is longer than a year")]
    TooLong,
}

/// Reads a duration: whole numbers with the units `d`, `h`, `m`, `s` and `ms`, largest first.
///
/// # Errors
/// [`DurationError`], which says what is wrong with `text`.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let mut rest = text;
    let mut total: u64 = 0;
    let mut smallest = None;
    if text.is_empty() {
        return Err(DurationError::Empty);
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let letters = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        if number.is_empty() {
            return Err(DurationError::NoNumber(unit.into()));
        }
        if unit.is_empty() {
            return Err(DurationError::NoUnit(number.into()));
        }
        let place = UNITS
            .iter()
            .position(|(name, _)| *name == unit)
            .ok_or_else(|| DurationError::UnknownUnit(unit.into()))?;
        if smallest.is_some_and(|smallest| place <= smallest) {
            return Err(DurationError::Order);
        }
        smallest = Some(place);
        total = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(UNITS[place].1))
            .and_then(|part| total.checked_add(part))
            .filter(|total| *total <= LONGEST)
            .ok_or(DurationError::TooLong)?;
        rest = after;
    }
    Ok(Duration::from_millis(total))
}

/// Writes a duration so that [`parse`] reads it again; what is under a millisecond is cut off.
pub fn format(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0s".into();
    }
    let mut text = String::new();
    for (unit, size) in UNITS {
        if rest >= size {
            text += &format!("{}{unit}", rest / size);
            rest %= size;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_the_contract_names() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("5s", 5000),
            ("1m30s", 90_000),
            ("0s", 0),
            ("1h", 3_600_000),
            ("1s500ms", 1500),
            ("90s", 90_000),
        ] {
            assert_eq!(
                parse(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
    }

    #[test]
    fn refuses_with_the_reason() {
        for (text, error) in [
            ("", DurationError::Empty),
            ("5", DurationError::NoUnit("5".into())),
            ("5 s", DurationError::UnknownUnit(" s".into())),
            ("5sec", DurationError::UnknownUnit("sec".into())),
            ("1.5s", DurationError::UnknownUnit(".".into())),
            ("-5s", DurationError::NoNumber("-".into())),
            ("s", DurationError::NoNumber("s".into())),
            ("30s1m", DurationError::Order),
            ("1s1s", DurationError::Order),
            ("99999999999999999999s", DurationError::TooLong),
            ("366d", DurationError::TooLong),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(milliseconds in 0..=LONGEST) {
            let duration = Duration::from_millis(milliseconds);
            prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }

        #[test]
        fn never_panics(text in "[0-9a-z. -]{0,12}") {
            let _ = parse(&text);
        }
    }
}
