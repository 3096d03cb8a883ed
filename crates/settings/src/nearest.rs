//! What was probably meant: the known word with the fewest slips from the one that was written, if they are few.

/// Bounds the work: no more of a word counts.
const CHARACTERS_MAX: usize = 64;
/// One slip in so many letters; one is forgiven in any word.
const LETTERS_PER_SLIP: usize = 3;

/// The candidate nearest to `word`; the first of equals. `None`: nobody who wrote `word` meant any of them.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = candidates.into_iter().filter(|candidate| is_near(word, candidate));
    near.min_by_key(|candidate| distance(word, candidate))
}

/// Few slips, or the first parts of a name alone: `quota` for `quota_bytes`.
fn is_near(word: &str, candidate: &str) -> bool {
    let letters = word.chars().count().max(candidate.chars().count()).min(CHARACTERS_MAX);
    distance(word, candidate) <= (letters / LETTERS_PER_SLIP).max(1)
        || candidate.strip_prefix(word).is_some_and(|rest| rest.starts_with(['_', '-']))
}

/// Slips between two words: a letter too many, too few, wrong, or two neighbours swapped.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(CHARACTERS_MAX).collect();
    let b: Vec<char> = b.chars().take(CHARACTERS_MAX).collect();
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            if i == 0 || j == 0 {
                rows[i][j] = i + j;
                continue;
            }
            let wrong = usize::from(a[i - 1] != b[j - 1]);
            let mut least = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + wrong);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_counted() {
        let cases = [("", "", 0), ("abc", "", 3), ("data", "dta", 1), ("data", "daat", 1), ("data", "date", 1)];
        for (a, b, slips) in cases {
            assert_eq!((distance(a, b), distance(b, a)), (slips, slips), "{a} {b}");
        }
    }

    #[test]
    fn the_nearest_word_is_found() {
        let words = ["data_dir", "block_cache_size", "max_open_files"];
        assert_eq!(nearest("datadir", words), Some("data_dir"));
        assert_eq!(nearest("block_cash_size", words), Some("block_cache_size"));
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn a_word_that_is_near_to_none_is_left_alone() {
        let words = ["mode", "sync", "data_dir", "block_cache_size"];
        for (word, meant) in [
            ("bogus", None),
            ("mood", None),
            ("mod", Some("mode")),
            ("sinc", Some("sync")),
            ("sink", None),
            ("wal_dir", None),
            ("dta_dri", Some("data_dir")),
            ("block", Some("block_cache_size")),
            ("bloc", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, words), meant, "{word}");
        }
        assert_eq!(nearest(&"mode".repeat(100), words), None);
    }
}
