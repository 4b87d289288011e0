// SPDX-License-Identifier: GPL-2.0

//! A guest that means harm: what it may try against a backend, each thing for as long as it is told to.
//!
//! An attack knows by itself whether it got an answer that it must not get, or none, and whether the disk can be used
//! afterwards. What it does to others, only dom0 and their guests can tell.

mod grants;
mod rings;
mod states;
mod storms;
mod tools;

use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::args::{Arguments, Attack as Options};
use crate::device::{Config, Device};
use crate::error::{fail, Result};
use crate::rng::Rng;

/// What an attack came to.
#[derive(Default)]
struct Found {
    /// What was done, in numbers.
    text: String,
    /// What the backend did wrong.
    problems: Vec<String>,
}

impl Found {
    fn new(text: String) -> Found {
        Found {
            text,
            problems: Vec::new(),
        }
    }

    /// Every request must have got an answer, and one that exists.
    fn demand_answers(self, missing: u32, answers: &tools::Answers) -> Found {
        self.demand(missing == 0, &format!("{missing} without an answer"))
            .demand(
                answers.unknown == 0,
                "answers with a status that does not exist",
            )
    }

    /// Adds a problem unless all is well.
    fn demand(mut self, well: bool, problem: &str) -> Found {
        if !well {
            self.problems.push(problem.to_owned());
        }
        self
    }
}

/// What attacks go by.
struct Attacker {
    config: Config,
    rng: Rng,
    /// Most requests in flight on each ring.
    depth: u32,
    /// Rounds at most.
    rounds: u64,
    /// How long, from the connection on.
    time: Duration,
    end: Instant,
}

impl Attacker {
    /// Connects to the disk; the time begins now.
    fn connect(&mut self) -> Result<Device> {
        let device = Device::connect(self.config)?;
        self.end = Instant::now() + self.time;
        Ok(device)
    }

    /// Whether it is time to stop, after so many rounds: one at least.
    fn over(&self, rounds: u64) -> bool {
        rounds > 0 && (rounds >= self.rounds || self.late())
    }

    fn late(&self) -> bool {
        Instant::now() >= self.end
    }
}

struct Attack {
    name: &'static str,
    /// Where it is known from: an advisory about another backend, most often.
    known: &'static str,
    purpose: &'static str,
    run: fn(&mut Attacker) -> Result<Found>,
}

const ATTACKS: &[Attack] = &[
    Attack {
        name: "flip",
        known: "XSA-155",
        purpose: "a second thread rewrites requests and segments while they are looked at; never behind half of the disk",
        run: rings::flip,
    },
    Attack {
        name: "padding",
        known: "XSA-216",
        purpose: "looks for bytes of the backend's memory in what responses leave unused",
        run: rings::padding,
    },
    Attack {
        name: "odd",
        known: "XSA-448",
        purpose: "slots full of random words, and of words that make some sense",
        run: rings::odd,
    },
    Attack {
        name: "indices",
        known: "",
        purpose: "req_prod where it cannot be, and rewritten again and again; then connects anew",
        run: rings::indices,
    },
    Attack {
        name: "shuffle",
        known: "XSA-229",
        purpose: "requests of 256 pages in random order, written in one and read in another",
        run: grants::shuffle,
    },
    Attack {
        name: "bad",
        known: "XSA-361, 362, 365, 367",
        purpose: "each segment in turn has a grant that cannot be mapped; then several",
        run: grants::bad,
    },
    Attack {
        name: "mix",
        known: "XSA-371",
        purpose: "grants used before, new, given up, read-only and bad in one request",
        run: grants::mix,
    },
    Attack {
        name: "own",
        known: "",
        purpose: "the ring's and the segments' own pages as data",
        run: grants::own,
    },
    Attack {
        name: "hoard",
        known: "XSA-300, 71",
        purpose: "rings full of requests of 256 segments, whose answers nobody takes",
        run: grants::hoard,
    },
    Attack {
        name: "kick",
        known: "XSA-332",
        purpose: "events without requests, as many as can be",
        run: storms::kick,
    },
    Attack {
        name: "refused",
        known: "CVE-2015-8552",
        purpose: "requests that must be refused, as many as can be",
        run: storms::refused,
    },
    Attack {
        name: "flushes",
        known: "",
        purpose: "full rings of flushes, each behind a write",
        run: storms::flushes,
    },
    Attack {
        name: "barriers",
        known: "",
        purpose: "full rings of barriers on all queues",
        run: storms::barriers,
    },
    Attack {
        name: "discards",
        known: "",
        purpose: "full rings of discards of the whole disk",
        run: storms::discards,
    },
    Attack {
        name: "large",
        known: "",
        purpose: "full rings of reads and writes of 256 pages",
        run: storms::large,
    },
    Attack {
        name: "write-protected",
        known: "CVE-2013-2140, XSA-142",
        purpose: "all that would change a read-only disk",
        run: storms::write_protected,
    },
    Attack {
        name: "states",
        known: "XSA-349",
        purpose: "writes of the node state, as many as can be",
        run: states::states,
    },
    Attack {
        name: "nodes",
        known: "XSA-349",
        purpose: "writes of other nodes, as many as can be, also below state",
        run: states::nodes,
    },
    Attack {
        name: "setup",
        known: "commits 4a8c31a1c6f5, d75e7f63",
        purpose: "nodes that contradict each other, or mean nothing; then connects",
        run: states::setup,
    },
    Attack {
        name: "toggle",
        known: "XSA-350",
        purpose: "goes through the states in any order with requests in flight, and hardly ever waits",
        run: states::toggle,
    },
    Attack {
        name: "reconnect",
        known: "XSA-350",
        purpose: "closes and connects anew with requests in flight, on the same pages",
        run: states::reconnect,
    },
    Attack {
        name: "garbage",
        known: "",
        purpose: "no state at all with requests in flight, then events; the disk is lost",
        run: states::garbage,
    },
];

/// Shows what there is.
pub fn list() -> (bool, Value) {
    for attack in ATTACKS {
        let known = match attack.known {
            "" => String::new(),
            known => format!(" ({known})"),
        };
        println!("{:16} {}{known}", attack.name, attack.purpose);
    }
    (true, json!({ "command": "attack" }))
}

/// Runs the attacks that are named, one after the other; returns whether the backend did nothing wrong, and the report.
pub fn run(arguments: &Arguments, options: &Options) -> Result<(bool, Value)> {
    if options.list {
        return Ok(list());
    }
    let mut chosen = Vec::new();
    for name in &options.names {
        match ATTACKS.iter().find(|attack| attack.name == name) {
            Some(attack) => chosen.push(attack),
            None => fail!("there is no attack {name:?}; --list shows them"),
        }
    }
    let mut good = true;
    let mut rows = Vec::new();
    for attack in chosen {
        let start = Instant::now();
        let mut attacker = Attacker {
            config: arguments.common.config(),
            rng: Rng::new(options.seed),
            depth: options.depth,
            rounds: options.rounds,
            time: Duration::from_secs(options.seconds),
            end: start + Duration::from_secs(options.seconds),
        };
        let found = match (attack.run)(&mut attacker) {
            Ok(found) => found,
            Err(error) => fail!("{}: {error}", attack.name),
        };
        let seconds = start.elapsed().as_secs_f64();
        let well = found.problems.is_empty();
        good &= well;
        println!(
            "{} {}: {} [{seconds:.1} s]",
            if well { "ok" } else { "FAIL" },
            attack.name,
            found.text
        );
        for problem in &found.problems {
            println!("    {problem}");
        }
        rows.push(json!({
            "name": attack.name,
            "ok": well,
            "text": found.text,
            "problems": found.problems,
            "seconds": seconds,
        }));
    }
    Ok((good, json!({ "command": "attack", "attacks": rows })))
}
