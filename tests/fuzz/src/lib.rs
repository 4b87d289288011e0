// SPDX-License-Identifier: GPL-2.0

//! Fuzz targets for the protocol crate.
//!
//! Each module has `run`, which takes any bytes and panics if the crate does what it must not, and `seeds`, a few inputs to
//! begin with. `run` knows a second way to say what is right, written from the Xen headers rather than from the crate.
//! A program in `src/bin` hands one of them to libFuzzer; the unit tests here run the seeds.

pub mod indirect;
pub mod input;
#[allow(unsafe_code)]
pub mod libfuzzer;
pub mod node;
pub mod persistent;
pub mod ring;
pub mod slot;
pub mod wire;

#[cfg(test)]
mod tests {
    use super::*;

    /// Any bytes will do, and all seeds are fine.
    #[test]
    fn seeds_are_right() {
        for (run, seeds) in [
            (slot::run as fn(&[u8]), slot::seeds()),
            (indirect::run, indirect::seeds()),
            (ring::run, ring::seeds()),
            (node::run, node::seeds()),
            (persistent::run, persistent::seeds()),
        ] {
            assert!(!seeds.is_empty());
            run(&[]);
            for seed in seeds {
                run(&seed);
                for length in 0..seed.len() {
                    run(&seed[..length]);
                }
            }
        }
    }
}
