//! Every entry with its corpus, with what can be made from it, and with bytes that are nothing at all. Memory is
//! counted: an entry that asks for more than its limit in all has failed, also when it gave it back.
//!
//! One test for all: what is counted is the process's, and tests run beside each other.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

use std::alloc::System;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use stor_fuzz::{ENTRIES, Entry};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Inputs per entry of a run that was not told otherwise.
const INPUTS: u32 = 3000;
const INPUTS_SET: &str = "STOR_FUZZ_INPUTS";
const LONGEST: usize = 4096;

fn corpus(entry: &Entry) -> Vec<Vec<u8>> {
    let place = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(entry.name);
    let mut paths: Vec<PathBuf> = fs::read_dir(&place)
        .unwrap_or_else(|error| panic!("{}: {error}", place.display()))
        .map(|file| file.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", place.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Runs one input; what it asked the allocator for.
fn run(entry: &Entry, input: &[u8]) -> usize {
    let region = Region::new(COUNTED);
    let ended = std::panic::catch_unwind(|| (entry.run)(input));
    let asked = region.change().bytes_allocated;
    let limit = entry.memory(input.len());
    assert!(
        ended.is_ok() && asked <= limit,
        "{}: {} bytes of memory asked for, {limit} allowed, by the input {}",
        entry.name,
        asked,
        hex(input)
    );
    asked
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

/// An input of the corpus with some bytes changed, cut out, repeated or put in front of another.
fn changed(runner: &mut TestRunner, corpus: &[Vec<u8>]) -> Vec<u8> {
    let any = |runner: &mut TestRunner, limit: usize| (0..limit.max(1)).new_tree(runner).unwrap().current();
    let mut input = corpus[any(runner, corpus.len())].clone();
    for _ in 0..=any(runner, 4) {
        let at = any(runner, input.len());
        match any(runner, 6) {
            0 if !input.is_empty() => input[at] ^= 1 << any(runner, 8),
            1 if !input.is_empty() => input[at] = [0, 1, 0x7f, 0x80, 0xff][any(runner, 5)],
            2 => input.truncate(at),
            3 => {
                let other = &corpus[any(runner, corpus.len())];
                input.extend_from_slice(&other[..any(runner, other.len())]);
            }
            4 => {
                let part = input[at..].to_vec();
                input.extend(part);
            }
            _ => input.insert(at, u8::try_from(any(runner, 256)).unwrap()),
        }
        input.truncate(LONGEST);
    }
    input
}

#[test]
fn nothing_panics_and_memory_is_bounded() {
    let count = std::env::var(INPUTS_SET).map_or(INPUTS, |text| text.parse().unwrap());
    for entry in ENTRIES {
        let corpus = corpus(entry);
        let mut most = corpus.iter().map(|input| run(entry, input)).max().unwrap_or(0);
        // The same inputs each time.
        let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let mut runner = TestRunner::new_with_rng(Config::default(), random);
        let nothing = proptest::collection::vec(proptest::num::u8::ANY, 0..600);
        for number in 0..count {
            let input = match number % 4 {
                0 => nothing.new_tree(&mut runner).unwrap().current(),
                _ => changed(&mut runner, &corpus),
            };
            most = most.max(run(entry, &input));
        }
        println!(
            "{}: {} of the corpus and {count} more, at most {most} bytes of memory",
            entry.name,
            corpus.len()
        );
    }
}
