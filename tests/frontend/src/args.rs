// SPDX-License-Identifier: GPL-2.0

//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use blkif::abi::Abi;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::device::Config;

// Decades and an exbibyte: sums with clocks and numbers of sectors stay far below where they overflow.
const SECONDS_AT_MOST: u64 = 1 << 30;
const MIB_AT_MOST: u64 = 1 << 40;

/// Drives the rings of a Xen disk from inside a guest that has no xen-blkfront loaded.
///
/// Exit status: 0 all well, 1 the backend answered wrongly, 2 it could not be tested, 3 it does not offer what the
/// options ask for.
#[derive(Parser, Debug)]
#[command(name = "blkif-frontend", version)]
pub struct Arguments {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
    /// How to connect
    #[command(flatten)]
    pub common: Common,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Connect, show what the backend offers, read one block, disconnect
    Probe,
    /// Send every kind of request, right and wrong, and compare the answers with what they must be
    Conformance(Conformance),
    /// Random requests whose data are checked
    Verify(Verify),
    /// Requests at a fixed depth, as many as the backend can do
    Load(Load),
    /// On a slow disk: who waits for a barrier, and that nobody waits for a discard
    Order(Order),
    /// What a guest could do that means harm
    Attack(Attack),
    /// On a disk that is changed while its storage hangs: what becomes of requests that wait behind flushes
    Behind(Behind),
}

/// Options of all commands.
#[derive(Args, Debug)]
pub struct Common {
    /// The disk: xvda, or its number
    #[arg(long, visible_alias = "vdev", value_parser = device_number, default_value = "xvda", global = true)]
    pub device: u32,
    /// Layout of the rings; `default` leaves the node out, which means x86_32
    #[arg(long, value_enum, default_value = "native", global = true)]
    pub abi: AbiName,
    /// Pages per ring, as a power of two
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=8), global = true)]
    pub ring_order: u32,
    /// Number of rings
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64), global = true)]
    pub queues: u32,
    /// Most segments of a request; more than 11 makes requests indirect
    #[arg(long, value_name = "SEGMENTS", default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..=4096), global = true)]
    pub indirect: u32,
    /// Promise the backend that pages stay granted (feature-persistent)
    #[arg(long, global = true)]
    pub persistent: bool,
    /// Where the indices of the rings start
    #[arg(long, default_value_t = 0, global = true)]
    pub first_index: u32,
    /// Seconds that the backend may take for a change of state or a response, times what $XB_PACE says
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(..=SECONDS_AT_MOST), global = true)]
    pub timeout: u64,
    /// Write the results there, too
    #[arg(long, value_name = "FILE", global = true)]
    pub json: Option<PathBuf>,
}

/// Names of the layouts.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbiName {
    /// That of this program
    Native,
    /// 64 bits
    #[value(name = "x86_64")]
    X86_64,
    /// 32 bits
    #[value(name = "x86_32")]
    X86_32,
    /// 32 bits, as a frontend that does not say so
    Default,
}

impl Common {
    /// The layout, as it is written on the command line.
    pub fn abi_name(&self) -> String {
        self.abi
            .to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// What the connection needs of it.
    pub fn config(&self) -> Config {
        Config {
            device: self.device,
            abi: match self.abi {
                AbiName::Native => Abi::Native,
                AbiName::X86_64 => Abi::X86_64,
                AbiName::X86_32 | AbiName::Default => Abi::X86_32,
            },
            anonymous_abi: self.abi == AbiName::Default,
            ring_order: self.ring_order,
            queues: self.queues,
            persistent: self.persistent,
            first_index: self.first_index,
            timeout: Duration::from_secs(self.timeout).mul_f64(pace()),
        }
    }
}

/// How many times slower than usual the machine is: `XB_PACE`, 1 to 100, of the tests that run us.
pub fn pace() -> f64 {
    let given = std::env::var("XB_PACE").ok();
    let factor: Option<f64> = given.and_then(|text| text.parse().ok());
    factor.unwrap_or(1.0).clamp(1.0, 100.0)
}

/// Options of `conformance`.
#[derive(Args, Debug)]
pub struct Conformance {
    /// Which backend it is; where one may differ from another, that one's answer is expected
    #[arg(long, value_enum, default_value = "rs")]
    pub backend: Peer,
    /// Only rows whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// Show the rows and what is expected, without a disk
    #[arg(long)]
    pub list: bool,
}

/// The backends that the table knows.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// xen-blkback-rs
    Rs,
    /// The in-tree xen-blkback, on a block device or a loop device
    Loop,
    /// qemu
    Qdisk,
}

/// Options of `verify`.
#[derive(Args, Debug)]
pub struct Verify {
    /// End after so many requests
    #[arg(long, default_value_t = 2000)]
    pub requests: u64,
    /// End after so many seconds, if that is earlier; 0 is no limit
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=SECONDS_AT_MOST))]
    pub seconds: u64,
    /// End when this file is there, if that is earlier
    #[arg(long, value_name = "FILE")]
    pub until: Option<PathBuf>,
    /// What the random numbers start from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Most requests in flight on each ring (default: as many as it has slots)
    #[arg(long)]
    pub depth: Option<u32>,
    /// MiB of the disk to use, from its start
    #[arg(long, value_name = "MIB", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=MIB_AT_MOST))]
    pub area: u64,
    /// So many requests may fail; what is on the disk where one should have written is not known then
    #[arg(long, default_value_t = 0)]
    pub errors: u64,
}

/// Options of `order`.
#[derive(Args, Debug)]
pub struct Order {
    /// The disk goes away meanwhile: demand only that all requests around a barrier are answered
    #[arg(long)]
    pub dying: bool,
}

/// Options of `attack`.
#[derive(Args, Debug)]
pub struct Attack {
    /// One or more, in this order
    #[arg(required_unless_present = "list")]
    pub names: Vec<String>,
    /// Show what there is, without a disk
    #[arg(long)]
    pub list: bool,
    /// How long each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(..=SECONDS_AT_MOST))]
    pub seconds: u64,
    /// End each after so many rounds, whatever is one, if that is earlier
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    pub rounds: u64,
    /// Most requests in flight on each ring (default: as many as it has slots)
    #[arg(long, default_value_t = u32::MAX, hide_default_value = true)]
    pub depth: u32,
    /// What the random numbers start from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Options of `behind`.
#[derive(Args, Debug)]
pub struct Behind {
    /// Flushes to wait behind: more than the backend works on at a time
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(..=4096))]
    pub flushes: u32,
    /// Writes of a page each
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub writes: u32,
    /// Where the first one begins
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=MIB_AT_MOST))]
    pub sector: u64,
}

/// Options of `load`.
#[derive(Args, Debug)]
pub struct Load {
    /// How long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=SECONDS_AT_MOST))]
    pub seconds: u64,
    /// End after so many requests on each ring, if that is earlier
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    pub requests: u64,
    /// Requests in flight on each ring
    #[arg(long, default_value_t = 1)]
    pub depth: u32,
    /// Only so many requests of each ring have pages of their own, the others use the same ones
    #[arg(long, default_value_t = u32::MAX, hide_default_value = true, value_parser = clap::value_parser!(u32).range(1..))]
    pub own_pages: u32,
    /// Size of a request in KiB
    #[arg(long, value_name = "KIB", default_value_t = 4)]
    pub size: u32,
    /// How many of 100 requests are reads
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub reads: u32,
    /// One request after the other on the disk, rather than at random
    #[arg(long)]
    pub sequential: bool,
    /// Ask for an event only with every so many responses
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch: u32,
    /// Microseconds that each answer takes to be dealt with, once all that are there have been taken
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub think: u64,
    /// Report what is in each request's pages at the end: the sum of all words of 64 bits
    #[arg(long)]
    pub sums: bool,
    /// MiB of the disk to use, from its start (default: all)
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=MIB_AT_MOST))]
    pub area: Option<u64>,
    /// What the random numbers start from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// The number of a disk by its name, as in xen's docs/man/xen-vbd-interface.7.
fn device_number(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let wrong = || format!("{text:?} is neither a number nor a name such as xvda or xvdb1");
    let name = text.strip_prefix("xvd").ok_or_else(wrong)?;
    let letters = name.trim_end_matches(|character: char| character.is_ascii_digit());
    let partition: u32 = match &name[letters.len()..] {
        "" => 0,
        digits => digits.parse().map_err(|_| wrong())?,
    };
    if letters.is_empty()
        || letters.len() > 3
        || !letters.bytes().all(|byte| byte.is_ascii_lowercase())
    {
        return Err(wrong());
    }
    let disk = letters
        .bytes()
        .fold(0, |disk, byte| disk * 26 + u32::from(byte - b'a') + 1)
        - 1;
    if disk < 16 && partition < 16 {
        Ok((202 << 8) | (disk << 4) | partition)
    } else if partition < 256 {
        Ok((1 << 28) | (disk << 8) | partition)
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_disks() {
        assert_eq!(device_number("xvda"), Ok(51712));
        assert_eq!(device_number("xvdb1"), Ok(51729));
        assert_eq!(device_number("xvdq"), Ok((1 << 28) | (16 << 8)));
        assert_eq!(device_number("768"), Ok(768));
        for wrong in ["", "xvd", "hda", "xvdA", "xvd1", "xvda999"] {
            assert!(device_number(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn numbers_that_would_overflow_are_refused() {
        for (line, most) in [
            ("probe --timeout", SECONDS_AT_MOST),
            ("verify --seconds", SECONDS_AT_MOST),
            ("verify --area", MIB_AT_MOST),
            ("load --seconds", SECONDS_AT_MOST),
            ("load --area", MIB_AT_MOST),
        ] {
            let parsed = |number: u64| {
                let line = format!("blkif-frontend {line} {number}");
                Arguments::try_parse_from(line.split(' ')).map_err(|error| error.kind())
            };
            assert!(parsed(most).is_ok(), "{line}");
            for number in [most + 1, u64::MAX] {
                assert_eq!(
                    parsed(number).err(),
                    Some(clap::error::ErrorKind::ValueValidation),
                    "{line} {number}"
                );
            }
        }
    }
}
