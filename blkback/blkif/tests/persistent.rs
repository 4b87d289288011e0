// SPDX-License-Identifier: GPL-2.0

//! The table of persistent grants, compared with a simple model under random operations.

use blkif::persistent::{
    Entry,
    Index,
    Table, //
};
use proptest::prelude::*;

type Grants = Table<u64, Vec<Entry<u64>>>;

fn room(count: usize) -> Vec<Entry<u64>> {
    (0..count).map(|_| Entry::free()).collect()
}

#[test]
fn an_empty_table_takes_nothing() {
    let mut table = Grants::new(room(0));
    assert_eq!((table.len(), table.capacity()), (0, 0));
    assert_eq!(table.insert(7, 70), Err(70));
    assert!(table.acquire(7).is_none() && table.get(7).is_none() && table.oldest().is_none());
}

#[test]
fn a_grant_in_use_is_never_the_oldest() {
    let mut table = Grants::new(room(2));
    let a = table.insert(1, 10).unwrap();
    let b = table.insert(2, 20).unwrap();
    assert_eq!(table.insert(3, 30), Err(30), "full");
    assert!(table.oldest().is_none());
    assert_eq!(table.remove(a), None, "in use");
    table.refresh(a, 9);
    assert!(table.oldest().is_none());
    table.release(b, 5);
    table.release(a, 6);
    assert_eq!(table.oldest(), Some((b, &20, 5)));
    table.refresh(b, 7);
    assert_eq!(table.oldest(), Some((a, &10, 6)));
    assert_eq!(table.acquire(1), Some((a, &10)));
    assert_eq!(table.acquire(1), Some((a, &10)));
    assert_eq!(table.oldest(), Some((b, &20, 7)));
    table.release(a, 8);
    assert_eq!(table.remove(a), None, "one user is left");
    assert_eq!(table.remove(b), Some(20));
    assert_eq!(table.remove(b), None, "gone");
    table.release(b, 9);
    assert_eq!((table.len(), table.is_empty()), (1, false));
}

#[test]
fn a_table_that_does_not_grow_keeps_what_it_has() {
    let mut table = Grants::new(room(2));
    table.insert(1, 10).unwrap();
    assert_eq!(table.grow(room(2)).len(), 2);
    assert_eq!(table.grow(room(0)).len(), 0);
    assert_eq!((table.capacity(), table.get(1)), (2, Some(&10)));
}

/// A grant as the model knows it.
#[derive(Debug)]
struct Known {
    gref: u32,
    value: u64,
    index: Index,
    users: u32,
    /// Of the unused ones: order and time of the last use.
    last: (u64, u64),
}

#[derive(Clone, Debug)]
enum Step {
    Use(u32),
    Release(prop::sample::Index),
    RemoveOldest,
    Refresh(prop::sample::Index),
    Grow(usize),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // References as guests use them, some that share a bucket, and the extremes.
    let gref = prop_oneof![8 => 8u32..40, 1 => any::<u32>(), 1 => Just(u32::MAX), 1 => Just(0)];
    prop::collection::vec(
        prop_oneof![
            6 => gref.prop_map(Step::Use),
            6 => any::<prop::sample::Index>().prop_map(Step::Release),
            2 => Just(Step::RemoveOldest),
            1 => any::<prop::sample::Index>().prop_map(Step::Refresh),
            1 => (0usize..24).prop_map(Step::Grow),
            1 => (0u64..9).prop_map(Step::Pass),
        ],
        0..300,
    )
}

proptest! {
    #[test]
    fn behaves_as_the_model(steps in steps(), capacity in 0usize..12) {
        let mut table = Grants::new(room(capacity));
        let mut capacity = capacity;
        let mut known: Vec<Known> = Vec::new();
        let (mut now, mut order) = (0u64, 0u64);
        for step in steps {
            order += 1;
            match step {
                Step::Use(gref) => {
                    let found = known.iter_mut().find(|k| k.gref == gref);
                    let got = table.acquire(gref).map(|(index, value)| (index, *value));
                    prop_assert_eq!(got, found.as_ref().map(|k| (k.index, k.value)));
                    match found {
                        Some(found) => {
                            found.users += 1;
                            prop_assert_eq!(table.insert(gref, 1), Err(1), "known already");
                        }
                        None => match table.insert(gref, order) {
                            Ok(index) => {
                                prop_assert!(known.len() < capacity);
                                prop_assert!(known.iter().all(|k| k.index != index));
                                known.push(Known { gref, value: order, index, users: 1, last: (0, 0) });
                            }
                            Err(value) => {
                                prop_assert_eq!(value, order);
                                prop_assert_eq!(known.len(), capacity);
                            }
                        },
                    }
                }
                Step::Release(which) => {
                    let mut used: Vec<_> = known.iter_mut().filter(|k| k.users > 0).collect();
                    if !used.is_empty() {
                        let index = which.index(used.len());
                        let one = &mut used[index];
                        one.users -= 1;
                        one.last = (order, now);
                        table.release(one.index, now);
                    }
                }
                Step::RemoveOldest => {
                    let oldest = known.iter().filter(|k| k.users == 0).min_by_key(|k| k.last);
                    let got = table.oldest().map(|(index, value, since)| (index, *value, since));
                    prop_assert_eq!(got, oldest.map(|k| (k.index, k.value, k.last.1)));
                    if let Some((index, value, _)) = got {
                        prop_assert_eq!(table.remove(index), Some(value));
                        known.retain(|k| k.index != index);
                    }
                }
                Step::Refresh(which) => {
                    if !known.is_empty() {
                        let index = which.index(known.len());
                        let one = &mut known[index];
                        table.refresh(one.index, now);
                        if one.users == 0 {
                            one.last = (order, now);
                        }
                    }
                }
                Step::Grow(count) => {
                    let old = table.grow(room(count));
                    if count > capacity {
                        prop_assert_eq!(old.len(), capacity);
                        capacity = count;
                    } else {
                        prop_assert_eq!(old.len(), count);
                    }
                }
                Step::Pass(time) => now += time,
            }
            prop_assert_eq!((table.len(), table.capacity()), (known.len(), capacity));
            for one in &known {
                prop_assert_eq!(table.get(one.gref), Some(&one.value));
            }
        }
    }
}
