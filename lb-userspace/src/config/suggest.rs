//! Did you mean …?

/// The one of `words` that `name` is a likely misspelling of.
pub fn nearest<'w>(name: &str, words: &[&'w str]) -> Option<&'w str> {
    words
        .iter()
        .map(|word| (strsim::damerau_levenshtein(name, word), *word))
        .filter(|(distance, word)| *distance <= 1.max(word.chars().count() / 3))
        .min()
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_misspellings_and_nothing_else() {
        let words = ["interval", "timeout", "path", "port"];
        assert_eq!(nearest("intervall", &words), Some("interval"));
        assert_eq!(nearest("tiemout", &words), Some("timeout"));
        assert_eq!(nearest("pth", &words), Some("path"));
        assert_eq!(nearest("banana", &words), None);
    }
}
