// SPDX-License-Identifier: GPL-2.0

//! A constant number of requests in flight, to measure what a backend can do.
//!
//! One thread for each ring; a request costs it the words of the slot and two looks at the clock. Data are not looked
//! at, but for what `--sums` reports of them at the end. Requests are published in batches: all that the responses found at once make room for.

use std::time::{Duration, Instant};

use blkif::abi::{operation_name, Abi, MAX_SEGMENTS, OP_READ, OP_WRITE};
use blkif::{RawSlot, Status};
use serde_json::{json, Value};

use crate::args::{Arguments, Load};
use crate::device::Device;
use crate::error::{fail, Error, Result};
use crate::histogram::Histogram;
use crate::ring::Ring;
use crate::rng::{fill_sector, Rng, SECTOR};
use crate::sys::{Pages, PAGE};
use crate::wire::{
    self, Common, Segment, MAX_INDIRECT_PAGES, SEGMENTS_PER_INDIRECT_PAGE, SEGMENT_SIZE,
};

/// More failed requests than this say nothing new.
const FAILED_AT_MOST: usize = 64;

/// What all threads go by.
#[derive(Clone, Copy)]
struct Plan {
    depth: usize,
    /// Requests of a ring that have pages of their own.
    own_pages: usize,
    /// Sectors of a request.
    sectors: u64,
    /// Requests that fit into the area.
    places: u64,
    reads: u64,
    sequential: bool,
    batch: u32,
    seed: u64,
    /// Requests of a ring.
    limit: u64,
    timeout: Duration,
    think: Duration,
    sums: bool,
    end: Instant,
}

/// What one thread found.
#[derive(Default)]
struct Measured {
    latency: Histogram,
    reads: u64,
    errors: u64,
    /// First sectors of requests that failed, up to `FAILED_AT_MOST`.
    failed: Vec<u64>,
    /// Events that came and that were sent.
    events: u64,
    notifications: u64,
    /// At most so many requests after those that it knew the backend has asked for an event.
    asked_ahead: u32,
    /// Of the data of each request, if they are wanted.
    sums: Vec<u64>,
}

/// A request that can be sent again and again: only operation, identifier and place on the disk change.
struct Template {
    segments: Vec<Segment>,
    /// Grant references of the pages of segments, for an indirect request.
    descriptors: Vec<u32>,
    since: Instant,
    read: bool,
    sector: u64,
}

/// Loads the disk; returns whether all requests were done, and the report.
pub fn run(arguments: &Arguments, options: &Load) -> Result<(bool, Value)> {
    let common = &arguments.common;
    let mut device = Device::connect(common.config())?;
    let mut plan = plan(&device, options, common.config().timeout)?;
    let pages = plan.sectors.div_ceil(8) as usize;
    if pages > MAX_SEGMENTS && pages > device.properties.indirect as usize {
        return Err(Error::NotOffered(format!(
            "requests of {} KiB need {pages} segments, feature-max-indirect-segments offers {}: choose a smaller --size",
            options.size, device.properties.indirect
        )));
    }
    // Granting pages takes its time, which is not to be measured.
    let mut requests = Vec::new();
    for _ in &device.rings {
        requests.push(Requests::new(device.backend_id, plan)?);
    }
    let rings = std::mem::take(&mut device.rings);
    let mut first_error = None;
    let mut total = Measured::default();
    let start = Instant::now();
    plan.end = start + Duration::from_secs(options.seconds);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(rings.into_iter().zip(requests))
            .map(|(number, (mut ring, requests))| {
                scope.spawn(move || {
                    let measured = drive(&mut ring, requests, plan, number);
                    (ring, measured)
                })
            })
            .collect();
        for thread in threads {
            match thread.join() {
                Ok((ring, measured)) => {
                    device.rings.push(ring);
                    match measured {
                        Ok(measured) => total.add(&measured),
                        Err(error) => first_error = first_error.take().or(Some(error)),
                    }
                }
                Err(_) => first_error = Some(Error::Failed("a thread ended by a panic".into())),
            }
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    if let Some(error) = first_error {
        return Err(error);
    }
    let properties = device.properties.json();
    device.disconnect()?;
    let (good, mut report) = report(arguments, options, &total, seconds);
    report["properties"] = properties;
    Ok((good, report))
}

fn plan(device: &Device, options: &Load, timeout: Duration) -> Result<Plan> {
    let properties = &device.properties;
    let sectors = u64::from(options.size) * 1024 / SECTOR as u64;
    let area = options
        .area
        .map_or(properties.sectors, |area| area * (1 << 20) / SECTOR as u64)
        .min(properties.sectors);
    if sectors == 0
        || sectors > area
        || sectors * SECTOR as u64 % u64::from(properties.sector_size) != 0
    {
        fail!(
            "requests of {} KiB do not go with a disk of {area} sectors, blocks of {}",
            options.size,
            properties.sector_size
        );
    }
    if properties.readonly && options.reads < 100 {
        fail!("the disk is read-only: only --reads 100 makes sense");
    }
    let entries = device.rings.first().map_or(0, Ring::entries);
    if options.depth == 0 || options.depth > entries {
        fail!("--depth {}: a ring of this size has room for 1 to {entries} requests; see --ring-order", options.depth);
    }
    Ok(Plan {
        depth: options.depth as usize,
        own_pages: options.own_pages.min(options.depth) as usize,
        sectors,
        places: area / sectors,
        reads: options.reads.into(),
        sequential: options.sequential,
        batch: options.batch.min(options.depth),
        seed: options.seed,
        timeout,
        think: Duration::from_micros(options.think),
        sums: options.sums,
        limit: options.requests,
        end: Instant::now(),
    })
}

/// The requests of one ring, and their pages.
struct Requests {
    templates: Vec<Template>,
    data: Pages,
    /// Only to stay granted.
    _descriptors: Pages,
}

impl Requests {
    fn new(domain: u16, plan: Plan) -> Result<Requests> {
        let per_request = plan.sectors.div_ceil(8) as usize;
        let mut pages = Pages::grant(domain, plan.own_pages * per_request, true)?;
        let mut data = [0; SECTOR];
        for sector in 0..plan.own_pages * per_request * 8 {
            fill_sector(&mut data, plan.seed, sector as u64, 1);
            pages.write(sector * SECTOR, &data);
        }
        let indirect = per_request > MAX_SEGMENTS;
        let count = if indirect {
            plan.own_pages * MAX_INDIRECT_PAGES
        } else {
            1
        };
        let mut descriptors = Pages::grant(domain, count, true)?;
        let templates = (0..plan.depth)
            .map(|slot| {
                template(
                    slot % plan.own_pages,
                    plan,
                    &pages,
                    &mut descriptors,
                    indirect,
                )
            })
            .collect();
        Ok(Requests {
            templates,
            data: pages,
            _descriptors: descriptors,
        })
    }

    /// Sum of all words of each request's data.
    fn sums(&self, plan: Plan) -> Vec<u64> {
        let length = plan.sectors.div_ceil(8) as usize * PAGE;
        let mut data = vec![0; length];
        (0..plan.depth)
            .map(|slot| {
                self.data.read(slot * length, &mut data);
                data.chunks_exact(8)
                    .map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()))
                    .fold(0, u64::wrapping_add)
            })
            .collect()
    }
}

/// Keeps one ring busy until the end of the plan, and lets it run dry then.
fn drive(ring: &mut Ring, mut requests: Requests, plan: Plan, number: u64) -> Result<Measured> {
    let templates = &mut requests.templates;
    let mut measured = Measured::default();
    let mut rng = Rng::new(plan.seed.wrapping_add(number));
    // Rings that go through the disk in order start at different places.
    let mut next = number.wrapping_mul(plan.places / 7);
    let abi = ring.abi();
    let mut left = plan.limit;
    let mut send = |ring: &mut Ring, slot: usize, templates: &mut [Template]| {
        if left == 0 {
            return;
        }
        left -= 1;
        let template = &mut templates[slot];
        let place = if plan.sequential {
            next % plan.places
        } else {
            rng.below(plan.places)
        };
        next = next.wrapping_add(1);
        template.read = plan.reads == 100 || rng.chance(plan.reads);
        let common = Common {
            id: slot as u64,
            sector: place * plan.sectors,
            handle: 0,
        };
        template.sector = common.sector;
        ring.put(&template.request(abi, common));
        template.since = Instant::now();
    };
    for slot in 0..plan.depth {
        send(ring, slot, templates);
    }
    let mut seen = Vec::new();
    loop {
        publish(ring, &mut measured)?;
        let running = Instant::now() < plan.end;
        let mut found = false;
        while let Some(response) = ring.next_response()? {
            found = true;
            let Some(template) = templates.get(response.id as usize) else {
                fail!(
                    "a response with id {:#x}, which was never sent",
                    response.id
                );
            };
            measured
                .latency
                .add(template.since.elapsed().as_nanos() as u64);
            measured.reads += u64::from(template.read);
            if response.status != Status::Okay as i16 {
                measured.errors += 1;
                if measured.failed.len() < FAILED_AT_MOST {
                    measured.failed.push(template.sector);
                }
            }
            if !plan.think.is_zero() {
                seen.push(response.id as usize);
            } else if running {
                send(ring, response.id as usize, templates);
            }
        }
        if !seen.is_empty() {
            // As a kernel does, whose programs run after its interrupt handler.
            ring.ask_event(plan.batch);
            for slot in seen.drain(..) {
                let start = Instant::now();
                while start.elapsed() < plan.think {
                    std::hint::spin_loop();
                }
                if running {
                    send(ring, slot, templates);
                    publish(ring, &mut measured)?;
                }
            }
        }
        if found {
            continue;
        }
        if ring.in_flight() == 0 {
            if plan.sums {
                measured.sums = requests.sums(plan);
            }
            return Ok(measured);
        }
        if !ring.ask_event(plan.batch.min(ring.in_flight())) {
            if !ring.channel.wait(Instant::now() + plan.timeout)? {
                return Err(ring.overdue(plan.timeout));
            }
            measured.events += 1;
        }
    }
}

fn template(
    slot: usize,
    plan: Plan,
    pages: &Pages,
    descriptors: &mut Pages,
    indirect: bool,
) -> Template {
    let per_request = plan.sectors.div_ceil(8) as usize;
    let segments: Vec<Segment> = (0..per_request)
        .map(|page| Segment {
            gref: pages.grefs()[slot * per_request + page],
            first: 0,
            last: ((plan.sectors - page as u64 * 8).min(8) - 1) as u8,
        })
        .collect();
    let mut grefs = Vec::new();
    if indirect {
        let base = slot * MAX_INDIRECT_PAGES;
        for (number, segment) in segments.iter().enumerate() {
            descriptors.write(base * PAGE + number * SEGMENT_SIZE, &segment.bytes());
        }
        grefs = descriptors.grefs()[base..base + per_request.div_ceil(SEGMENTS_PER_INDIRECT_PAGE)]
            .to_vec();
    }
    Template {
        segments,
        descriptors: grefs,
        since: Instant::now(),
        read: true,
        sector: 0,
    }
}

impl Template {
    fn request(&self, abi: Abi, common: Common) -> RawSlot {
        let operation = if self.read { OP_READ } else { OP_WRITE };
        let count = self.segments.len();
        if self.descriptors.is_empty() {
            wire::direct(abi, 0, operation, count as u8, common, &self.segments)
        } else {
            wire::indirect(abi, 0, operation, count as u16, common, &self.descriptors)
        }
    }
}

impl Measured {
    fn add(&mut self, other: &Measured) {
        self.latency.merge(&other.latency);
        self.reads += other.reads;
        self.errors += other.errors;
        self.failed.extend(&other.failed);
        self.events += other.events;
        self.notifications += other.notifications;
        self.asked_ahead = self.asked_ahead.max(other.asked_ahead);
        self.sums.extend(&other.sums);
    }
}

/// Shows the backend the requests that have been put.
fn publish(ring: &mut Ring, measured: &mut Measured) -> Result<()> {
    if ring.publish() {
        ring.channel.notify()?;
        measured.notifications += 1;
    }
    let ahead = ring.req_event().wrapping_sub(ring.req_prod()) as i32;
    measured.asked_ahead = measured.asked_ahead.max(ahead.max(0) as u32);
    Ok(())
}

fn report(arguments: &Arguments, options: &Load, total: &Measured, seconds: f64) -> (bool, Value) {
    let requests = total.latency.count();
    let rate = requests as f64 / seconds;
    let mebibytes = rate * f64::from(options.size) / 1024.0;
    let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1000.0;
    let percentiles = [50.0, 90.0, 99.0, 99.9]
        .map(|percent| (percent, microseconds(total.latency.percentile(percent))));
    println!(
        "{requests} requests in {seconds:.2} s: {rate:.0}/s, {mebibytes:.1} MiB/s, {} errors",
        total.errors
    );
    let mut line = format!("latency in us: mean {:.1}", total.latency.mean() / 1000.0);
    for (percent, value) in percentiles {
        line += &format!(", {percent} % {value:.1}");
    }
    println!("{line}, max {:.1}", microseconds(total.latency.max()));
    println!(
        "{:.2} events and {:.2} notifications per request",
        total.events as f64 / requests.max(1) as f64,
        total.notifications as f64 / requests.max(1) as f64
    );
    let latency: serde_json::Map<String, Value> = percentiles
        .iter()
        .map(|(percent, value)| (format!("p{percent}"), json!(value)))
        .collect();
    let report = json!({
        "command": "load",
        "abi": arguments.common.abi_name(),
        "queues": arguments.common.queues,
        "ring_order": arguments.common.ring_order,
        "persistent": arguments.common.persistent,
        "depth": options.depth,
        "size_kib": options.size,
        "reads_percent": options.reads,
        "sequential": options.sequential,
        "seconds": seconds,
        "requests": requests,
        operation_name(OP_READ): total.reads,
        operation_name(OP_WRITE): requests - total.reads,
        "errors": total.errors,
        "failed_sectors": total.failed,
        "requests_per_second": rate,
        "mib_per_second": mebibytes,
        "latency_us": { "mean": total.latency.mean() / 1000.0, "max": microseconds(total.latency.max()), "percentiles": latency },
        "events": total.events,
        "notifications": total.notifications,
        "asked_ahead": total.asked_ahead,
        "sums": total.sums,
    });
    (total.errors == 0, report)
}
