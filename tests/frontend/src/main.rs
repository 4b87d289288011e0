// SPDX-License-Identifier: GPL-2.0

//! A frontend in user space: it connects to a disk's backend as a kernel driver would, and then puts any request on
//! the rings, right or wrong.

mod args;
mod attack;
mod behind;
mod conformance;
mod device;
mod error;
mod histogram;
mod load;
mod order;
mod ring;
mod rng;
#[allow(unsafe_code)]
mod sys;
mod verify;
mod wire;
mod xenstore;

use std::process::ExitCode;

use blkif::abi::OP_READ;
use clap::Parser;
use serde_json::json;

use args::{Arguments, Command};
use device::Device;
use error::Result;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("blkif-frontend: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Runs the command; returns whether the backend did everything right.
fn run(arguments: &Arguments) -> Result<bool> {
    let (good, report) = match &arguments.command {
        Command::Probe => probe(arguments)?,
        Command::Conformance(options) => conformance::run(arguments, options)?,
        Command::Verify(options) => verify::run(arguments, options)?,
        Command::Load(options) => load::run(arguments, options)?,
        Command::Order(options) => order::run(arguments, options)?,
        Command::Attack(options) => attack::run(arguments, options)?,
        Command::Behind(options) => behind::run(arguments, options)?,
    };
    if let Some(path) = &arguments.common.json {
        std::fs::write(path, format!("{report:#}\n"))
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(good)
}

fn probe(arguments: &Arguments) -> Result<(bool, serde_json::Value)> {
    let config = arguments.common.config();
    let mut device = Device::connect(config)?;
    println!("{:#}", device.properties.json());
    let pages = sys::Pages::grant(device.backend_id, 1, true)?;
    let common = wire::Common {
        id: 1,
        sector: 0,
        handle: 0,
    };
    let ring = &mut device.rings[0];
    ring.put(&wire::page(
        ring.abi(),
        0,
        OP_READ,
        common,
        pages.grefs()[0],
    ));
    ring.push()?;
    let response = ring.wait_response(config.timeout)?;
    println!("read of one page: status {}", response.status);
    let good = response.status == blkif::Status::Okay as i16;
    let report = json!({ "command": "probe", "ok": good, "properties": device.properties.json() });
    device.disconnect()?;
    Ok((good, report))
}
