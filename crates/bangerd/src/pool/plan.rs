//! What to do next for the pool to be what it shall be. Pure: nothing here touches the machine.

use super::kind::Kind;

/// How much may stand ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Guests of each kind.
    pub(super) each: usize,
    /// Memory of all of them, in bytes.
    pub(super) bytes: u64,
}

/// A kind of which guests shall stand ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish<K = Kind> {
    pub(super) kind: K,
    /// What one takes, if one was there before.
    pub(super) bytes: Option<u64>,
    /// The last one could not be made.
    pub(super) has_failed: bool,
}

/// A guest that stands ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Standing<K = Kind> {
    pub(super) kind: K,
    pub(super) bytes: u64,
    pub(super) is_dead: bool,
}

/// What to do. Numbers are places in what was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Make a guest for that wish.
    Make(usize),
    /// End that guest.
    End(usize),
    /// All is as it shall be.
    Rest,
}

/// What to do next; `wishes` are in the order of their last use, the latest first. Whoever follows it
/// comes to rest: only what is dead, unwanted or too much is ended, and nothing is made that would be.
pub(super) fn next<K: PartialEq>(
    wishes: &[Wish<K>],
    guests: &[Standing<K>],
    bounds: Bounds,
) -> Next {
    let rank = |guest: &Standing<K>| wishes.iter().position(|wish| wish.kind == guest.kind);
    let is_useless = |guest: &Standing<K>| guest.is_dead || rank(guest).is_none();
    if let Some(useless) = guests.iter().position(is_useless) {
        return Next::End(useless);
    }
    // Whose kind was used longest ago.
    let least = || (0..guests.len()).max_by_key(|&at| rank(&guests[at]));
    let taken = guests.iter().fold(0u64, |sum, guest| sum.saturating_add(guest.bytes));
    if taken > bounds.bytes {
        return least().map_or(Next::Rest, Next::End);
    }
    for (at, wish) in wishes.iter().enumerate().filter(|(_, wish)| !wish.has_failed) {
        if guests.iter().filter(|guest| guest.kind == wish.kind).count() >= bounds.each {
            continue;
        }
        let needed = wish.bytes.unwrap_or(0);
        if taken.saturating_add(needed) <= bounds.bytes {
            return Next::Make(at);
        }
        // Those of kinds used longer ago go, if that is of any use.
        let lesser = guests.iter().filter(|guest| rank(guest) > Some(at));
        let could_go = lesser.fold(0u64, |sum, guest| sum.saturating_add(guest.bytes));
        let kept = taken.saturating_sub(could_go);
        if could_go > 0 && kept.saturating_add(needed) <= bounds.bytes {
            return least().map_or(Next::Rest, Next::End);
        }
    }
    Next::Rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wish(kind: u8, bytes: Option<u64>) -> Wish<u8> {
        Wish { kind, bytes, has_failed: false }
    }

    fn guest(kind: u8, bytes: u64) -> Standing<u8> {
        Standing { kind, bytes, is_dead: false }
    }

    #[test]
    fn what_comes_next() {
        let bounds = Bounds { each: 2, bytes: 100 };
        let failed = Wish { has_failed: true, ..wish(1, None) };
        let dead = Standing { is_dead: true, ..guest(1, 30) };
        // Wishes, guests, what to do.
        type Row<'a> = (&'a [Wish<u8>], &'a [Standing<u8>], Next);
        let table: [Row<'_>; 11] = [
            (&[], &[], Next::Rest),
            (&[wish(1, None)], &[], Next::Make(0)),
            (&[wish(1, Some(30))], &[guest(1, 30)], Next::Make(0)),
            (&[wish(1, Some(30))], &[guest(1, 30), guest(1, 30)], Next::Rest),
            (std::slice::from_ref(&failed), &[], Next::Rest),
            // Nobody wants it any more; it has died.
            (&[wish(1, None)], &[guest(2, 30)], Next::End(0)),
            (&[wish(1, None)], &[guest(1, 30), dead], Next::End(1)),
            // One of the kind that was used longer ago makes room for the one used last.
            (&[wish(1, Some(50)), wish(2, Some(60))], &[guest(2, 60)], Next::End(0)),
            (&[wish(2, Some(60)), wish(1, Some(50))], &[guest(2, 60)], Next::Rest),
            // It turned out to be larger than all may be.
            (&[wish(1, Some(101))], &[guest(1, 101)], Next::End(0)),
            (&[wish(1, Some(101))], &[], Next::Rest),
        ];
        for (wishes, guests, want) in table {
            assert_eq!(next(wishes, guests, bounds), want, "{wishes:?} {guests:?}");
        }
    }

    proptest! {
        /// Followed step by step it comes to rest within the bounds, whatever was there before.
        #[test]
        fn it_comes_to_rest(
            wishes in proptest::collection::btree_map(0u8..5, (proptest::option::of(1u64..80), any::<bool>()), 0..5),
            found in proptest::collection::vec((0u8..6, 1u64..80, any::<bool>()), 0..8),
            sizes in proptest::collection::vec(1u64..80, 6),
            each in 0usize..4,
            bytes in 0u64..200,
        ) {
            let mut wishes: Vec<Wish<u8>> = wishes
                .into_iter()
                .map(|(kind, (bytes, has_failed))| Wish { kind, bytes, has_failed })
                .collect();
            let mut guests: Vec<Standing<u8>> = found
                .into_iter()
                .map(|(kind, bytes, is_dead)| Standing { kind, bytes, is_dead })
                .collect();
            let bounds = Bounds { each, bytes };
            let mut steps = 0;
            loop {
                match next(&wishes, &guests, bounds) {
                    Next::Rest => break,
                    Next::End(at) => drop(guests.remove(at)),
                    Next::Make(at) => {
                        let (kind, size) = (wishes[at].kind, sizes[usize::from(wishes[at].kind)]);
                        wishes[at].bytes = wishes[at].bytes.max(Some(size));
                        guests.push(guest(kind, size));
                    }
                }
                steps += 1;
                prop_assert!(steps < 100, "{wishes:?} {guests:?}");
            }
            prop_assert!(guests.iter().map(|guest| guest.bytes).sum::<u64>() <= bytes);
            prop_assert!(guests.iter().all(|guest| !guest.is_dead));
        }
    }
}
