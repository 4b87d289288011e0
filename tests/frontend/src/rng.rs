// SPDX-License-Identifier: GPL-2.0

//! Numbers that look random and repeat with the seed, and contents of sectors made from them.

use blkif::abi::SECTOR_SIZE;

/// Size of a sector, as a size in memory.
pub const SECTOR: usize = SECTOR_SIZE as usize;

/// A generator in the manner of splitmix64: a counter whose value is scrambled.
#[derive(Clone, Debug)]
pub struct Rng(u64);

/// The odd number next to 2^64 divided by the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn scramble(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Rng {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Rng {
        Rng(scramble(seed.wrapping_add(STEP)))
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        scramble(self.0)
    }

    /// The next number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Fills a sector with what depends on where it is and on when it was written. The number of the sector and the
/// version stand at its start, so that a wrong sector tells where it comes from.
pub fn fill_sector(data: &mut [u8], seed: u64, sector: u64, version: u32) {
    let mut rng = Rng::new(seed ^ sector.wrapping_mul(STEP) ^ (u64::from(version) << 32));
    for (number, word) in data.chunks_exact_mut(8).enumerate() {
        let value = match number {
            0 => sector,
            1 => (seed << 32) | u64::from(version),
            _ => rng.next(),
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// What the start of a sector says about itself, for messages.
pub fn describe_sector(data: &[u8]) -> String {
    let word = |at: usize| {
        data.get(at..at + 8).map_or(0, |bytes| {
            u64::from_le_bytes(std::array::from_fn(|n| bytes[n]))
        })
    };
    if data.iter().all(|byte| byte == &data[0]) {
        return format!("all bytes {:#04x}", data[0]);
    }
    format!(
        "sector {} version {} of seed {}",
        word(0),
        word(8) as u32,
        word(8) >> 32
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_differ_by_place_and_time() {
        let sector = |sector, version| {
            let mut data = [0; SECTOR];
            fill_sector(&mut data, 1, sector, version);
            data
        };
        assert_eq!(sector(1, 1), sector(1, 1));
        assert_ne!(sector(1, 1), sector(2, 1));
        assert_ne!(sector(1, 1), sector(1, 2));
        assert_eq!(
            describe_sector(&sector(7, 3)),
            "sector 7 version 3 of seed 1"
        );
        assert_eq!(describe_sector(&[0x5a; SECTOR]), "all bytes 0x5a");
    }

    #[test]
    fn numbers_stay_below_the_limit_and_reach_it() {
        let mut rng = Rng::new(3);
        let mut seen = [false; 7];
        for _ in 0..200 {
            seen[rng.below(7) as usize] = true;
        }
        assert_eq!(seen, [true; 7]);
    }
}
