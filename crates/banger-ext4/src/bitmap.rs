//! A set of small numbers: blocks of a disk.

const WORD_BITS: u64 = 64;

/// A set of the numbers below a bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bitmap {
    words: Vec<u64>,
    bound: u64,
}

impl Bitmap {
    /// The empty set of numbers below `bound`.
    pub(crate) fn new(bound: u64) -> Self {
        Self { words: vec![0; crate::fields::index(bound.div_ceil(WORD_BITS))], bound }
    }

    /// All numbers are below it.
    pub(crate) fn bound(&self) -> u64 {
        self.bound
    }

    /// Whether one of these is in it.
    pub(crate) fn intersects(&self, start: u64, count: u64) -> bool {
        self.next(start, start.saturating_add(count)).is_some()
    }

    /// Whether all of these are in it.
    pub(crate) fn covers(&self, start: u64, count: u64) -> bool {
        start
            .checked_add(count)
            .is_some_and(|end| end <= self.bound && self.next_absent(start, end).is_none())
    }

    /// Add numbers, which must be below the bound.
    pub(crate) fn insert(&mut self, start: u64, count: u64) {
        self.change(start, count, |word, mask| *word |= mask);
    }

    /// Take numbers out, which must be below the bound.
    pub(crate) fn remove(&mut self, start: u64, count: u64) {
        self.change(start, count, |word, mask| *word &= !mask);
    }

    /// The first number in it that is not below `from`, but below `to`.
    pub(crate) fn next(&self, from: u64, to: u64) -> Option<u64> {
        self.search(from, to, |word| word)
    }

    /// The first number not in it that is not below `from`, but below `to`.
    pub(crate) fn next_absent(&self, from: u64, to: u64) -> Option<u64> {
        self.search(from, to, |word| !word)
    }

    /// How many numbers are in it.
    pub(crate) fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Eight numbers, the smallest in the lowest bit, as bitmaps on disk have them.
    pub(crate) fn byte(&self, first: u64) -> u8 {
        let shift = first % WORD_BITS;
        debug_assert_eq!(shift % 8, 0);
        self.words[word(first)].to_le_bytes()[crate::fields::index(shift / 8)]
    }

    fn search(&self, from: u64, to: u64, matching: impl Fn(u64) -> u64) -> Option<u64> {
        let to = to.min(self.bound);
        if from >= to {
            return None;
        }
        let last = word(to - 1);
        let mut at = word(from);
        let mut found = matching(self.words[at]) & (!0 << (from % WORD_BITS));
        while found == 0 {
            at += 1;
            if at > last {
                return None;
            }
            found = matching(self.words[at]);
        }
        let number = at as u64 * WORD_BITS + u64::from(found.trailing_zeros());
        (number < to).then_some(number)
    }

    fn change(&mut self, start: u64, count: u64, mut with: impl FnMut(&mut u64, u64)) {
        let (mut at, end) = (start, start + count);
        assert!(end <= self.bound, "numbers are checked before they come here");
        while at < end {
            let here = (WORD_BITS - at % WORD_BITS).min(end - at);
            let mask = (!0 >> (WORD_BITS - here)) << (at % WORD_BITS);
            with(&mut self.words[word(at)], mask);
            at += here;
        }
    }
}

fn word(number: u64) -> usize {
    crate::fields::index(number / WORD_BITS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_does_what_a_set_does(
            bound in 1_u64..300,
            changes in prop::collection::vec((any::<bool>(), 0_u64..300, 0_u64..150), 0..20),
        ) {
            let mut bitmap = Bitmap::new(bound);
            let mut set = BTreeSet::new();
            for (insert, start, count) in changes {
                let start = start.min(bound);
                let count = count.min(bound - start);
                if insert {
                    bitmap.insert(start, count);
                    set.extend(start..start + count);
                } else {
                    bitmap.remove(start, count);
                    set.retain(|number| !(start..start + count).contains(number));
                }
                prop_assert_eq!(bitmap.len(), set.len() as u64);
                let range = start..start + count;
                prop_assert_eq!(bitmap.next(start, u64::MAX), set.range(start..).next().copied());
                prop_assert_eq!(bitmap.next(start, range.end), set.range(range.clone()).next().copied());
                let absent = |end| (start..end).find(|number| !set.contains(number));
                prop_assert_eq!(bitmap.next_absent(start, u64::MAX), absent(bound));
                prop_assert_eq!(bitmap.next_absent(start, range.end), absent(range.end));
                prop_assert_eq!(bitmap.covers(start, count), range.clone().all(|n| set.contains(&n)));
                prop_assert_eq!(
                    bitmap.intersects(start, count),
                    range.clone().any(|n| set.contains(&n))
                );
            }
        }
    }
}
