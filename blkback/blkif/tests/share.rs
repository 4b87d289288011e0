// SPDX-License-Identifier: GPL-2.0

//! Guests that map all they are allowed to.

use blkif::share::{Limits, Mapped, LEAST, RESERVE};

/// What Xen has if nothing else is said, and the defaults of the module's parameters.
const XEN: u32 = 1024 * 256;
const DEFAULT: Limits = Limits {
    all: XEN / 8 * 7,
    guest: 32768,
};

/// Maps as much as it may for each guest in turn, until nobody gets more.
struct Host {
    limits: Limits,
    all: u32,
    permanent: u32,
    guests: Vec<Mapped>,
}

impl Host {
    fn new(limits: Limits, guests: usize) -> Self {
        Self {
            limits,
            all: 0,
            permanent: 0,
            guests: vec![Mapped::default(); guests],
        }
    }

    fn ring(&mut self, guest: usize, pages: u32) -> bool {
        let cost = pages + RESERVE;
        let one = &mut self.guests[guest];
        let wanted = Mapped {
            all: self.all + cost,
            permanent: self.permanent + cost,
            guest: one.guest + cost,
            rings: one.rings + cost,
            ..*one
        };
        let granted = self.limits.permits_ring(wanted);
        if granted {
            self.all += cost;
            self.permanent += cost;
            *one = wanted;
        }
        granted
    }

    /// One request of `pages` pages; what may stay mapped does.
    fn request(&mut self, guest: usize, pages: u32, keep: bool) -> bool {
        let one = &mut self.guests[guest];
        let mut wanted = Mapped {
            all: self.all + pages,
            permanent: self.permanent,
            guest: one.guest + pages,
            ..*one
        };
        if !self.limits.permits_request(wanted) {
            return false;
        }
        if keep {
            let kept = self.limits.keepable(wanted).min(pages);
            wanted.kept += kept;
            self.permanent += kept;
        }
        self.all += pages;
        *one = wanted;
        true
    }

    /// All take turns until none gets anything.
    fn exhaust(&mut self, pages: u32, keep: bool) {
        while (0..self.guests.len())
            .filter(|guest| self.request(*guest, pages, keep))
            .count()
            > 0
        {}
    }
}

#[test]
fn one_guest_gets_what_the_administrator_allows() {
    for keep in [false, true] {
        let mut host = Host::new(DEFAULT, 2);
        assert!(host.ring(0, 16));
        while host.request(0, 256, keep) {}
        assert!(host.all <= DEFAULT.guest && host.all > DEFAULT.guest / 8 * 7 - 256);
        // Another one has the same, whatever the first one does.
        assert!(host.ring(1, 16));
        while host.request(1, 256, keep) {}
        assert!(host.guests[1].guest > DEFAULT.guest / 8 * 7 - 256);
        // And so has another disk of the first one.
        assert!(host.ring(0, 16));
    }
}

#[test]
fn many_greedy_guests_leave_room() {
    for (guests, pages, keep) in [
        (2, 256, false),
        (20, 256, true),
        (100, 11, false),
        (250, 11, true),
        (1000, 256, true),
    ] {
        let mut host = Host::new(DEFAULT, guests + 1);
        for guest in 0..guests {
            for _ in 0..4 {
                assert!(host.ring(guest, 1));
            }
        }
        let last = host.guests.pop().unwrap();
        host.exhaust(pages, keep);
        let greedy = host.all;
        assert!(greedy <= DEFAULT.all, "{guests} guests have {greedy}");
        // A guest that comes now can connect, and can do something at once if there are not too many others.
        host.guests.push(last);
        assert!(host.ring(guests, 1), "no ring beside {guests} guests");
        assert!(
            host.request(guests, 256, false) || guests > 100,
            "no request beside {guests} guests"
        );
        // When others are done it can in any case.
        let (all, permanent) = (host.all, host.permanent);
        host.all = permanent;
        assert!(
            host.request(guests, 256, false),
            "no request ever beside {guests} guests"
        );
        assert!(all < XEN && permanent < DEFAULT.all / 8 * 7 + 12 * 1001);
    }
}

#[test]
fn a_thousand_disks_work() {
    // Rings of the default number and size, persistent grants, and all of them want all that they can get.
    let mut host = Host::new(DEFAULT, 1000);
    for guest in 0..1000 {
        assert!(host.ring(guest, 1) && host.ring(guest, 1));
    }
    for guest in 0..1000 {
        for _ in 0..100 {
            host.request(guest, 32, true);
        }
        // What does not stay mapped is given back.
        let one = &mut host.guests[guest];
        one.guest = one.rings + one.kept;
        host.all = host.permanent;
    }
    assert!(host.all < DEFAULT.all / 8 * 7 + 1, "{}", host.all);
    // Each can do the largest of requests at any time.
    for guest in 0..1000 {
        let before = (host.all, host.guests[guest]);
        assert!(host.request(guest, 256, false));
        (host.all, host.guests[guest]) = before;
    }
}

#[test]
fn what_stays_mapped_leaves_room_for_requests() {
    let mut host = Host::new(DEFAULT, 1);
    assert!(host.ring(0, 1));
    host.exhaust(64, true);
    let one = host.guests[0];
    assert!(one.kept <= DEFAULT.guest / 2 && one.kept > DEFAULT.guest / 3);
    // The limit has become smaller than what it has: it can go on all the same.
    let less = Limits {
        all: DEFAULT.all,
        guest: 1024,
    };
    let idle = Mapped {
        all: one.rings + one.kept,
        permanent: one.rings + one.kept,
        guest: one.rings + one.kept,
        ..one
    };
    assert_eq!(less.keepable(idle), 0);
    for (more, may) in [(1, true), (LEAST, true), (LEAST + 1, false)] {
        let wanted = Mapped {
            all: idle.all + more,
            guest: idle.guest + more,
            ..idle
        };
        assert_eq!(less.permits_request(wanted), may, "{more}");
    }
}

#[test]
fn no_number_is_too_large() {
    for limits in [
        Limits { all: 0, guest: 0 },
        Limits {
            all: u32::MAX,
            guest: u32::MAX,
        },
    ] {
        for n in [0, 1, u32::MAX / 2, u32::MAX] {
            let mapped = Mapped {
                all: n,
                permanent: n,
                guest: n,
                rings: n,
                kept: n,
            };
            let _ = (
                limits.permits_ring(mapped),
                limits.permits_request(mapped),
                limits.keepable(mapped),
            );
        }
    }
}
