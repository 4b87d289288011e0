// SPDX-License-Identifier: GPL-2.0

//! The table of grants that stay mapped, whose references are the frontend's choice, beside a list that is searched.

use blkif::persistent::{Entry, Index, Table};

use crate::input::Input;

/// A grant: reference, value, users, when it was last used, place.
struct Grant {
    gref: u32,
    value: u64,
    users: u32,
    since: u64,
    index: Index,
}

fn entries(count: usize) -> Vec<Entry<u64>> {
    (0..count).map(|_| Entry::free()).collect()
}

/// Number of entries; then steps.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut table = Table::new(entries(usize::from(input.u8() % 40)));
    // Those that nobody uses are in the order in which they were last used.
    let mut grants: Vec<Grant> = Vec::new();
    let mut now = 0;
    for step in 0..2048u64 {
        if input.is_empty() {
            break;
        }
        let byte = input.u8();
        now += u64::from(byte >> 6);
        // Few, so that they meet again, or any.
        let gref = match byte & 32 {
            0 => u32::from(input.u8() % 32),
            _ => input.u32(),
        };
        let known = grants.iter().position(|grant| grant.gref == gref);
        match byte & 7 {
            0 | 1 => match table.insert(gref, step) {
                Ok(index) => {
                    assert!(known.is_none() && grants.len() < table.capacity());
                    grants.push(Grant {
                        gref,
                        value: step,
                        users: 1,
                        since: 0,
                        index,
                    });
                }
                Err(value) => {
                    assert_eq!(value, step);
                    assert!(known.is_some() || grants.len() == table.capacity());
                }
            },
            2 => match (table.acquire(gref), known) {
                (Some((index, &value)), Some(at)) => {
                    let grant = &mut grants[at];
                    assert_eq!((index, value), (grant.index, grant.value));
                    grant.users += 1;
                }
                (None, None) => {}
                (found, _) => panic!("{gref}: {found:?}"),
            },
            3 | 4 => {
                if let Some(at) = known {
                    let index = grants[at].index;
                    table.release(index, now);
                    if grants[at].users > 0 {
                        grants[at].users -= 1;
                        grants[at].since = now;
                        if grants[at].users == 0 {
                            let grant = grants.remove(at);
                            grants.push(grant);
                        }
                    }
                }
            }
            5 => {
                if let Some(at) = known {
                    table.refresh(grants[at].index, now);
                    if grants[at].users == 0 {
                        let mut grant = grants.remove(at);
                        grant.since = now;
                        grants.push(grant);
                    }
                }
            }
            6 => {
                let oldest = table.oldest().map(|(index, ..)| index);
                let which = if byte & 8 != 0 {
                    known.map(|at| grants[at].index)
                } else {
                    oldest
                };
                if let Some(index) = which {
                    let at = grants
                        .iter()
                        .position(|grant| grant.index == index)
                        .expect("a grant");
                    let unused = grants[at].users == 0;
                    assert_eq!(table.remove(index), unused.then(|| grants[at].value));
                    if unused {
                        grants.remove(at);
                    }
                }
            }
            _ => {
                let more = usize::from(gref as u8 % 8);
                let before = table.capacity();
                let old = table.grow(entries(before + more));
                assert_eq!((table.capacity(), old.len()), (before + more, before));
            }
        }
        assert_eq!(
            table.get(gref),
            grants
                .iter()
                .find(|grant| grant.gref == gref)
                .map(|grant| &grant.value)
        );
        assert_eq!(
            (table.len(), table.is_empty()),
            (grants.len(), grants.is_empty())
        );
        let oldest = grants.iter().find(|grant| grant.users == 0);
        assert_eq!(
            table.oldest(),
            oldest.map(|grant| (grant.index, &grant.value, grant.since))
        );
    }
    // All that nobody uses can be taken out, in that order, and the rest stays.
    while let Some((index, ..)) = table.oldest() {
        let at = grants
            .iter()
            .position(|grant| grant.users == 0)
            .expect("as many as there are");
        assert_eq!(table.remove(index), Some(grants.remove(at).value));
    }
    assert_eq!(table.len(), grants.len());
    assert!(grants
        .iter()
        .all(|grant| table.get(grant.gref) == Some(&grant.value)));
}

/// Grants that come, are used, grow old and go.
pub fn seeds() -> Vec<Vec<u8>> {
    vec![
        [
            &[4][..],
            &[
                0, 1, 0, 2, 2, 1, 3, 1, 0x43, 1, 3, 2, 6, 0, 0, 3, 0, 4, 0, 5, 7, 9, 0, 5, 5, 2, 3,
                5, 3, 4, 14, 5,
            ],
        ]
        .concat(),
        (0..200u32)
            .flat_map(|n| [(n * 7 % 251) as u8, (n % 16) as u8])
            .collect(),
        vec![0, 0, 1, 7, 3, 0, 1, 3, 1, 6, 1],
    ]
}
