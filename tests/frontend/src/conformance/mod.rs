// SPDX-License-Identifier: GPL-2.0

//! Every kind of request, and every rule of the ring, each as a row with the answer that is expected.

mod lab;
mod rules;
mod table;

use serde_json::{json, Value};

use crate::args::{Arguments, Conformance};
use crate::device::Device;
use crate::error::Result;
use lab::{status_name, Lab};

/// How a row ended.
pub enum Outcome {
    /// As it must.
    Good,
    /// Not so.
    Bad(String),
    /// It does not apply to this disk.
    Skip(String),
}

/// What the rows came to.
#[derive(Default)]
struct Tally {
    ok: u32,
    failed: u32,
    skipped: u32,
    rows: Vec<Value>,
}

impl Tally {
    fn add(&mut self, name: &str, outcome: &Outcome, note: &str) {
        let (word, text) = match outcome {
            Outcome::Good => {
                self.ok += 1;
                ("ok", note)
            }
            Outcome::Bad(text) => {
                self.failed += 1;
                ("FAIL", text.as_str())
            }
            Outcome::Skip(text) => {
                self.skipped += 1;
                ("skip", text.as_str())
            }
        };
        match outcome {
            Outcome::Good => println!("ok {name}"),
            Outcome::Bad(_) => println!("FAIL {name}: got {text}"),
            Outcome::Skip(_) => println!("skip {name}: {text}"),
        }
        self.rows
            .push(json!({ "name": name, "result": word, "text": text }));
    }
}

/// Runs the table; returns whether no row failed, and the report.
pub fn run(arguments: &Arguments, options: &Conformance) -> Result<(bool, Value)> {
    let chosen = |name: &str| {
        options
            .only
            .as_ref()
            .is_none_or(|text| name.contains(text.as_str()))
    };
    if options.list {
        return Ok((true, list(&chosen)));
    }
    let config = arguments.common.config();
    let device = Device::connect(config)?;
    let properties = device.properties.json();
    let mut lab = Lab::new(device, options.backend, config.timeout, config.persistent)?;
    let mut tally = Tally::default();
    let mut broken = false;
    let mut step =
        |lab: &mut Lab, name: &str, note: &str, row: &dyn Fn(&mut Lab) -> Result<Outcome>| {
            if broken {
                return tally.add(
                    name,
                    &Outcome::Bad("nothing: not sent, since the ring is of no more use".into()),
                    "",
                );
            }
            // Each row on the next ring.
            lab.current += 1;
            let outcome = row(lab).unwrap_or_else(|error| {
                broken = true;
                Outcome::Bad(error.to_string())
            });
            tally.add(name, &outcome, note);
        };
    for row in table::rows().iter().filter(|row| chosen(&row.name)) {
        let note = lab.expectation(row).map_or("", |(_, why)| why);
        step(&mut lab, &row.name, note, &|lab| lab.perform(row));
    }
    for (name, rule) in rules::RULES.iter().filter(|(name, _)| chosen(name)) {
        step(&mut lab, name, "", rule);
    }
    if let Err(error) = lab.finish() {
        tally.add("disconnect", &Outcome::Bad(error.to_string()), "");
    } else {
        tally.add("disconnect", &Outcome::Good, "");
    }
    println!(
        "{} ok, {} failed, {} skipped",
        tally.ok, tally.failed, tally.skipped
    );
    let report = json!({
        "command": "conformance",
        "ok": tally.ok,
        "failed": tally.failed,
        "skipped": tally.skipped,
        "properties": properties,
        "rows": tally.rows,
    });
    Ok((tally.failed == 0, report))
}

/// Shows the table itself.
fn list(chosen: &dyn Fn(&str) -> bool) -> Value {
    let mut names = Vec::new();
    for row in table::rows().iter().filter(|row| chosen(&row.name)) {
        println!("{}: {}", row.name, status_name(row.expect as i16));
        for exception in &row.exceptions {
            let status = status_name(exception.expect as i16);
            println!(
                "    {:?}, {:?}: {status}, since {}",
                exception.peer, exception.when, exception.why
            );
        }
        names.push(json!({ "name": row.name, "expect": status_name(row.expect as i16) }));
    }
    for (name, _) in rules::RULES.iter().filter(|(name, _)| chosen(name)) {
        println!("{name}");
        names.push(json!({ "name": name }));
    }
    json!({ "rows": names })
}
