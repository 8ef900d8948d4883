//! Every reader of foreign text keeps to what `attachd::testing::parsers` asks, for all text that the
//! fuzzer (`tests/fuzz`) found worth keeping, and for what chance makes of it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeSet,
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

use attachd::testing::parsers::{ALL, Parser};

/// How many changed copies of each piece of text are tried; `ATTACHD_TEST_COPIES` says another number.
const COPIES: u64 = 60;

#[expect(clippy::disallowed_methods, reason = "a test's own setting")]
fn copies() -> u64 {
    std::env::var("ATTACHD_TEST_COPIES").map_or(COPIES, |number| number.parse().unwrap())
}

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = fuzz().join("corpus").join(name);
    let mut files: Vec<PathBuf> = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 2, "{name} has hardly any text");
    files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn try_all(of: impl Fn(&Parser) -> Vec<(String, Vec<u8>)>) -> usize {
    let (mut tried, mut broken) = (0, Vec::new());
    for parser in &ALL {
        for (what, text) in of(parser) {
            tried += 1;
            let read = parser.1;
            if catch_unwind(|| read(&text)).is_err() {
                broken.push(format!("{}: {what}: {:?}", parser.0, String::from_utf8_lossy(&text)));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    tried
}

#[test]
fn all_text_of_the_corpus_is_read_as_it_must_be() {
    let tried = try_all(|(name, _)| {
        corpus(name).into_iter().map(|(path, text)| (path.display().to_string(), text)).collect()
    });
    println!("{tried} pieces of text, {} readers", ALL.len());
}

/// A generator of its own: the same text in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit.max(1)
    }

    fn change(&mut self, text: &[u8]) -> Vec<u8> {
        const WORDS: [&[u8]; 14] = [
            b"\0",
            b"\n",
            b"\r",
            b" ",
            b"-",
            b"--",
            b"../",
            b"\"",
            b"'",
            b"\\",
            b"\xff",
            b"\x1b[2J",
            b"99999999999999999999",
            "\u{2028}\u{202e}".as_bytes(),
        ];
        let mut text = text.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(text.len() + 1);
            match self.below(4) {
                0 => drop(text.splice(at..at, WORDS[self.below(WORDS.len())].iter().copied())),
                1 => text.truncate(at),
                2 => {
                    let end = (at + 1 + self.below(20)).min(text.len());
                    let piece = text[at.min(end)..end].to_vec();
                    let to = self.below(text.len() + 1);
                    drop(text.splice(to..to, piece));
                }
                _ => {
                    if let Some(byte) = text.get_mut(at) {
                        *byte ^= 1 << self.below(8);
                    }
                }
            }
        }
        text
    }
}

#[test]
fn changed_copies_of_it_are_read_as_they_must_be() {
    let tried = try_all(|(name, _)| {
        let changed = |(path, text): (PathBuf, Vec<u8>)| {
            let mut chance = Chance(text.len() as u64 + 7);
            let copy = move |number| {
                (format!("{} changed ({number})", path.display()), chance.change(&text))
            };
            (0..copies()).map(copy).collect::<Vec<_>>()
        };
        corpus(name).into_iter().flat_map(changed).collect()
    });
    println!("{tried} changed copies, {} readers", ALL.len());
}

#[test]
fn every_reader_has_its_fuzz_target_and_its_corpus_and_no_other_is_there() {
    let names: BTreeSet<String> = ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    let listed = |below: &str| -> BTreeSet<String> {
        fs::read_dir(fuzz().join(below))
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(listed("corpus"), names);
    assert_eq!(listed("fuzz_targets"), names);
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for name in &names {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not built");
        let target = fs::read_to_string(fuzz().join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(target.contains(&format!("parsers::{name}(data)")), "{target}");
    }
}
