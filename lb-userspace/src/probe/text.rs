//! Text for people: durations, and bytes from a peer made harmless.

use std::time::Duration;

/// Most characters of a peer's text that are shown.
const EXCERPT: usize = 48;

/// `2s`, `250ms`, `1.5s`.
pub fn duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis >= 1000 && millis.is_multiple_of(1000) {
        format!("{}s", millis / 1000)
    } else if millis >= 1000 {
        format!("{:.1}s", duration.as_secs_f64())
    } else {
        format!("{millis}ms")
    }
}

/// The start of what a peer sent, on one line and without control characters.
pub fn excerpt(bytes: &[u8]) -> String {
    let head = &bytes[..bytes.len().min(4 * EXCERPT)];
    let text = String::from_utf8_lossy(head);
    let mut out = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == EXCERPT {
            break;
        }
        match character {
            // Excerpts are shown in double quotes.
            '"' | '\'' => out.push('\''),
            other => out.extend(other.escape_debug()),
        }
    }
    if text.chars().count() > EXCERPT || head.len() < bytes.len() {
        out.push('…');
    }
    out
}

/// `1 byte`, `2 bytes`.
pub fn bytes(count: u64) -> String {
    if count == 1 {
        "1 byte".to_owned()
    } else {
        format!("{count} bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        assert_eq!(duration(Duration::from_secs(2)), "2s");
        assert_eq!(duration(Duration::from_millis(1500)), "1.5s");
        assert_eq!(duration(Duration::from_millis(250)), "250ms");
    }

    #[test]
    fn excerpts_are_one_harmless_line() {
        assert_eq!(excerpt(b"220 mail\r\n\x1b[2J"), "220 mail\\r\\n\\u{1b}[2J");
        let long = excerpt(&[b'x'; 1000]);
        assert_eq!(long.chars().count(), EXCERPT + 1);
        assert!(long.ends_with('…'));
    }
}
