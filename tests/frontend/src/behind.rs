// SPDX-License-Identifier: GPL-2.0

//! Requests that wait behind flushes, for a disk that is changed while its storage hangs.
//!
//! More flushes than a backend works on at a time are sent, and behind them writes of a page each that follow one
//! another, and a discard of the last one's page. What has become of the disk when their turn comes is up to the test.

use std::time::{Duration, Instant};

use blkif::abi::{OP_FLUSH_DISKCACHE, OP_WRITE};
use blkif::Status;
use serde_json::{json, Value};

use crate::args::{Arguments, Behind};
use crate::device::Device;
use crate::error::{fail, Error, Result};
use crate::rng::{fill_sector, SECTOR};
use crate::sys::{Pages, PAGE};
use crate::wire::{self, Common};

/// Pause between two looks at the ring.
const PAUSE: Duration = Duration::from_millis(10);
/// Sectors of a write.
const SECTORS: u64 = (PAGE / SECTOR) as u64;

/// Runs it; returns whether all requests were done, and the report with the status of each request but the flushes.
pub fn run(arguments: &Arguments, options: &Behind) -> Result<(bool, Value)> {
    let config = arguments.common.config();
    let mut device = Device::connect(config)?;
    if !device.properties.discard {
        return Err(Error::NotOffered(
            "the backend has no feature-discard".into(),
        ));
    }
    let mut pages = Pages::grant(device.backend_id, options.writes as usize, true)?;
    let mut data = [0; SECTOR];
    for sector in 0..u64::from(options.writes) * SECTORS {
        fill_sector(&mut data, 1, options.sector + sector, 1);
        pages.write(sector as usize * SECTOR, &data);
    }
    let ring = &mut device.rings[0];
    let abi = ring.abi();
    let count = options.writes + options.flushes + 1;
    if count > ring.entries() {
        fail!("a ring of this size has no room for {count} requests; see --ring-order");
    }
    let (first_flush, discard) = (u64::from(options.writes), u64::MAX);
    let common = |id, sector| Common {
        id,
        sector,
        handle: 0,
    };
    for number in 0..u64::from(options.flushes) {
        let common = common(first_flush + number, 0);
        ring.put(&wire::direct(abi, 0, OP_FLUSH_DISKCACHE, 0, common, &[]));
    }
    let mut sector = options.sector;
    for (id, gref) in (0..).zip(pages.grefs()) {
        sector = options.sector + id * SECTORS;
        ring.put(&wire::page(abi, 0, OP_WRITE, common(id, sector), *gref));
    }
    ring.put(&wire::discard(abi, 0, 0, common(discard, sector), SECTORS));
    ring.push()?;

    let mut writes = vec![i16::MAX; options.writes as usize];
    let mut discarded = i16::MAX;
    let mut flushes_failed = 0;
    let mut left = count;
    let deadline = Instant::now() + config.timeout;
    while left > 0 {
        while let Some(response) = ring.next_response()? {
            left -= 1;
            if response.id == discard {
                discarded = response.status;
            } else if let Some(write) = writes.get_mut(response.id as usize) {
                *write = response.status;
            } else {
                flushes_failed += u32::from(response.status != Status::Okay as i16);
            }
        }
        if Instant::now() > deadline {
            fail!("{left} of {count} answers have not come");
        }
        std::thread::sleep(PAUSE);
    }
    device.disconnect()?;
    println!("writes: {writes:?}, discard: {discarded}, flushes that failed: {flushes_failed}");
    let good = writes.iter().all(|status| *status == 0) && discarded == 0 && flushes_failed == 0;
    let report = json!({
        "command": "behind",
        "writes": writes,
        "discard": discarded,
        "flushes_failed": flushes_failed,
    });
    Ok((good, report))
}
