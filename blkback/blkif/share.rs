// SPDX-License-Identifier: GPL-2.0

//! How many of its pages a guest may have mapped at a time.
//!
//! Xen has an entry in a table for each page of a guest that is mapped in another domain, and gives a domain
//! 1024 pages of such entries if nothing else is said: 262,144 entries for all disks of all guests, and for
//! whatever else maps there. A guest whose storage is slow could use them all.
//!
//! So there is a limit for all guests together, and one for each of them: a quarter of what is left of the
//! former, but no more than the administrator allows. One guest alone is stopped by the administrator's limit;
//! with `n` of them that want all they can get each has 1/(n + 4) of the whole, and 4/(n + 4) is left for the
//! next one.
//!
//! What a guest has mapped consists of
//!
//! - its rings, and [`RESERVE`] for each of them, so that a ring without a request in flight can always do one
//!   whose segments stand in its slot. For them there is the same limit, but as if no requests were in flight,
//!   so that a guest can have a new disk whatever others do. All but a sixteenth of the whole can be rings;
//! - pages that stay mapped (persistent grants): at most half of what is left of the limit without an eighth
//!   of it, which is for more rings, and all guests' all but an eighth of the whole;
//! - pages of requests in flight, which have the rest, and [`LEAST`] as long as there is anything left of the whole.
//!   There is, at some time, as requests come to an end: so each that waits gets its turn.

/// What is counted for each ring besides its own pages: the segments of a request that stand in its slot.
pub const RESERVE: u32 = crate::abi::MAX_SEGMENTS as u32;

/// Pages that a guest's requests may have in flight although it has its share: those of the two largest requests.
pub const LEAST: u32 = 2 * crate::abi::MAX_INDIRECT_SEGMENTS as u32;

/// The limit for all guests is no smaller than this, so that the sixteenth for requests is enough for any.
pub const SMALLEST: u32 = 16 * LEAST;

/// What the administrator allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// All guests together, at least [`SMALLEST`].
    pub all: u32,
    /// One of them.
    pub guest: u32,
}

/// What is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mapped {
    /// By all guests.
    pub all: u32,
    /// Of these, what does not go when requests end.
    pub permanent: u32,
    /// By the one in question, rings and what is kept included.
    pub guest: u32,
    /// Its rings, with what is reserved for them.
    pub rings: u32,
    /// What stays mapped.
    pub kept: u32,
}

impl Limits {
    /// The limit of a guest when all guests have so much.
    pub fn share(&self, all: u32) -> u32 {
        (self.left(all) / 4).min(self.guest)
    }

    /// May a guest have another ring, if this is what there is with it?
    pub fn permits_ring(&self, mapped: Mapped) -> bool {
        mapped.rings <= self.share(mapped.permanent) && self.left(mapped.permanent) >= self.all / 16
    }

    /// May a guest have more pages of requests mapped, if this is what there is with them?
    pub fn permits_request(&self, mapped: Mapped) -> bool {
        let permanent = mapped.rings.saturating_add(mapped.kept);
        mapped.all <= self.all
            && (mapped.guest <= self.for_requests(mapped.all)
                || mapped.guest.saturating_sub(permanent) <= LEAST)
    }

    /// How many more pages may stay mapped.
    pub fn keepable(&self, mapped: Mapped) -> u32 {
        (self.for_requests(mapped.all) / 2)
            .saturating_sub(mapped.kept)
            .min(self.left(mapped.all).saturating_sub(self.all / 8))
    }

    /// What all guests together do not have.
    fn left(&self, all: u32) -> u32 {
        self.all.saturating_sub(all)
    }

    /// The limit without what is only for rings.
    fn for_requests(&self, all: u32) -> u32 {
        let share = self.share(all);
        share.saturating_sub(share / 8)
    }
}
