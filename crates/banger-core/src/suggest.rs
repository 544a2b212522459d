//! The nearest known word to one that was mistyped.
//!
//! Used for hints only: a caller never acts on a suggestion by itself.

/// The candidate most like `word`, if any is so alike that the person may have meant it.
///
/// Alike is: the candidate begins with the word (or the reverse, for words of three letters and
/// more), or one becomes the other by few insertions, deletions, changes and swaps of neighbours:
/// one for every three letters, at least one. Of equally near candidates the first one wins.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let Some(distance) = likeness(&word, &candidate.to_lowercase()) else {
            continue;
        };
        if best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// How far apart two words are, or None if too far to be mistaken for each other.
fn likeness(word: &str, candidate: &str) -> Option<usize> {
    if word.is_empty() || candidate.is_empty() {
        return None;
    }
    let length = word.chars().count();
    let allowed = (length / 3).max(1);
    let distance = distance(word, candidate);
    if distance <= allowed {
        return Some(distance);
    }
    let is_beginning = length >= 3 && (candidate.starts_with(word) || word.starts_with(candidate));
    is_beginning.then_some(allowed)
}

/// Edit distance with swaps of neighbours (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before_last = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = change.min(last[j] + 1).min(row[j - 1] + 1);
            let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if swapped {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found() {
        let known = ["debian-bookworm", "debian-trixie", "alpine", "web"];
        let cases = [
            ("debian-bokworm", Some("debian-bookworm")),
            ("debian", Some("debian-bookworm")),
            ("Debian-Trixie", Some("debian-trixie")),
            ("debian-trixei", Some("debian-trixie")),
            ("alpin", Some("alpine")),
            ("wbe", Some("web")),
            ("we", Some("web")),
            ("webserver", Some("web")),
            ("fedora", None),
            ("", None),
            ("x", None),
        ];
        for (word, want) in cases {
            assert_eq!(nearest(word, known), want, "{word:?}");
        }
    }

    #[test]
    fn nothing_is_near_to_nothing() {
        assert_eq!(nearest("web", []), None);
        assert_eq!(nearest("web", [""]), None);
    }

    #[test]
    fn distances_count_swaps_once() {
        let cases = [("abc", "abc", 0), ("abc", "acb", 1), ("abc", "ab", 1), ("", "abc", 3)];
        for (a, b, want) in cases {
            assert_eq!(distance(a, b), want, "{a} {b}");
            assert_eq!(distance(b, a), want, "{b} {a}");
        }
    }
}
