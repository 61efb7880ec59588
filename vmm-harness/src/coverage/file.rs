//! Coverage of many runs, and how it is written in a campaign's report: what shards hand over, and what
//! pages are made of.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::covered::Covered;
use super::edges::Edges;
use super::features::{Features, New, PAIRS};
use crate::error::Error;

/// Version of the written form.
const VERSION: u32 = 1;
/// Edges of an image, at most; ten times what a large kernel has.
const MOST_EDGES: usize = 100_000_000;

/// What runs of one image have reached together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Coverage {
    image: Instrumented,
    runs: u64,
    features: Features,
}

/// An image as its edges name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instrumented {
    build: u64,
    edges: usize,
}

/// As it is written: sets as hexadecimal bytes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    percpu_coverage: u32,
    build: String,
    edges: usize,
    runs: u64,
    reached: usize,
    reached_edges: String,
    reached_switches: String,
}

impl Coverage {
    /// That of no run yet.
    pub fn of(edges: &Edges) -> Self {
        let image = Instrumented { build: edges.build(), edges: edges.len() };
        Self { image, runs: 0, features: Features::new() }
    }

    /// What `runs` runs have reached.
    pub fn of_runs(edges: &Edges, runs: u64, features: Features) -> Self {
        Self { runs, features, ..Self::of(edges) }
    }

    /// Adds a run, and says what was new.
    pub fn add(&mut self, run: &Features) -> New {
        self.runs += 1;
        self.features.add(run)
    }

    /// Runs that were added.
    pub fn runs(&self) -> u64 {
        self.runs
    }

    /// All that was reached.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Edges of the image, reached or not.
    pub fn edges(&self) -> usize {
        self.image.edges
    }

    /// Adds all runs of `other`, and says what was new.
    ///
    /// # Errors
    /// It is coverage of another image. Nothing was added then.
    pub fn union(&mut self, other: &Self) -> Result<New, Error> {
        self.image.is(other.image)?;
        self.runs = self.runs.saturating_add(other.runs);
        Ok(self.features.add(&other.features))
    }

    /// Whether it is coverage of the image with these edges.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self, edges: &Edges) -> Result<(), Error> {
        Instrumented { build: edges.build(), edges: edges.len() }.is(self.image)
    }
}

impl From<Coverage> for Written {
    fn from(Coverage { image, runs, features }: Coverage) -> Self {
        Self {
            percpu_coverage: VERSION,
            build: format!("{:#018x}", image.build),
            edges: image.edges,
            runs,
            reached: features.edges.count() + features.switches.count(),
            reached_edges: to_hex(&features.edges),
            reached_switches: to_hex(&features.switches),
        }
    }
}

impl TryFrom<Written> for Coverage {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written {
            percpu_coverage,
            build,
            edges,
            runs,
            reached,
            reached_edges,
            reached_switches,
        } = written;
        if percpu_coverage != VERSION {
            return Err(format!("it is of version {percpu_coverage}, this program's is {VERSION}"));
        }
        let build = build.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let build = build.ok_or("its build is no number")?;
        if edges > MOST_EDGES {
            return Err(format!("{edges} edges are more than any image has"));
        }
        let set = |hex: &str, room: usize, what: &str| {
            let set =
                from_hex(hex).ok_or_else(|| format!("its {what} are not hexadecimal bytes"))?;
            match set.iter().last() {
                Some(last) if last >= room => Err(format!("number {last} of {room} {what}")),
                _ => Ok(set),
            }
        };
        let features = Features {
            edges: set(&reached_edges, edges, "edges")?,
            switches: set(&reached_switches, PAIRS, "switches")?,
        };
        let found = features.edges.count() + features.switches.count();
        if found != reached {
            return Err(format!("it has {found} of the {reached} that it says were reached"));
        }
        Ok(Self { image: Instrumented { build, edges }, runs, features })
    }
}

impl Instrumented {
    fn is(self, other: Self) -> Result<(), Error> {
        if self == other {
            return Ok(());
        }
        Err(Error::CoverageOfAnotherImage { one: self.to_string(), other: other.to_string() })
    }
}

impl fmt::Display for Instrumented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "image {:#018x} with {} edges", self.build, self.edges)
    }
}

/// The set's bytes, the lowest numbers first, without the zeroes at the end.
fn to_hex(set: &Covered) -> String {
    let bytes: Vec<_> = set.words().iter().flat_map(|word| word.to_le_bytes()).collect();
    let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    bytes[..used].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(hex: &str) -> Option<Covered> {
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let bytes: Vec<_> =
        pairs.iter().map(|&[a, b]| Some(digit(a)? << 4 | digit(b)?)).collect::<Option<_>>()?;
    let word =
        |bytes: &[u8]| bytes.iter().rev().fold(0, |word: u64, &byte| word << 8 | u64::from(byte));
    Some(Covered::from_words(bytes.chunks(8).map(word).collect()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn coverage(build: u64, edges: usize, reached: &[usize]) -> Coverage {
        let features = Features { edges: reached.iter().copied().collect(), ..Features::new() };
        Coverage { image: Instrumented { build, edges }, runs: 1, features }
    }

    fn text_of(coverage: &Coverage) -> String {
        let text = serde_json::to_string_pretty(coverage).unwrap();
        assert_eq!(serde_json::from_str::<Coverage>(&text).unwrap(), *coverage);
        text
    }

    #[test]
    fn what_is_written_is_read() {
        let mut saved = coverage(0xabc, 11_580, &[0, 1, 63, 64, 11_579]);
        saved.features.note_switch(1, 2);
        text_of(&saved);
        text_of(&coverage(1, 0, &[]));
    }

    proptest! {
        #[test]
        fn sets_survive_being_written(set in prop::collection::btree_set(0usize..2000, 0..100)) {
            let set: Covered = set.into_iter().collect();
            prop_assert_eq!(from_hex(&to_hex(&set)), Some(set));
        }
    }

    #[test]
    fn coverage_of_shards_adds_up() {
        let mut all = coverage(7, 100, &[1, 2]);
        let new = all.union(&coverage(7, 100, &[2, 3, 99])).unwrap();
        assert_eq!(new, New { edges: 2, switches: 0 });
        assert_eq!(all.runs(), 2);
        assert_eq!(all.features().edges.iter().collect::<Vec<_>>(), [1, 2, 3, 99]);
    }

    #[test]
    fn coverage_of_another_image_is_refused_and_changes_nothing() {
        let mut all = coverage(7, 100, &[1]);
        for other in [coverage(8, 100, &[2]), coverage(7, 101, &[2])] {
            let error = all.union(&other).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("one image") && text.contains("0x0000000000000007"), "{text}");
            assert_eq!(error.exit_code(), 2);
        }
        assert_eq!(all, coverage(7, 100, &[1]));
    }

    #[test]
    fn damaged_text_is_refused_with_what_is_wrong() {
        let good = text_of(&coverage(7, 100, &[1, 2, 99]));
        let parse = |text: &str| serde_json::from_str::<Coverage>(text);
        assert!(parse(&good).is_ok());
        let why = |text: &str| parse(text).unwrap_err().to_string();
        for cut in [0, 1, good.len() / 2, good.len() - 3] {
            assert!(!why(&good[..cut]).is_empty());
        }
        let spoiled = |from: &str, to: &str| {
            assert!(good.contains(from), "{good}");
            why(&good.replace(from, to))
        };
        assert!(spoiled("\"percpu_coverage\": 1", "\"percpu_coverage\": 2").contains("version 2"));
        assert!(spoiled("0x0000", "000").contains("no number"));
        assert!(spoiled("\"edges\": 100", "\"edges\": 99").contains("number 99 of 99 edges"));
        assert!(spoiled("\"edges\": 100", "\"edges\": 18446744073709551615").contains("more than"));
        assert!(spoiled("\"06", "\"0g").contains("hexadecimal"));
        assert!(spoiled("\"06", "\"6").contains("hexadecimal"));
        assert!(spoiled("\"06", "\"02").contains("it has 2 of the 3"));
        assert!(spoiled("\"runs\": 1", "\"runs\": -1").contains("-1"));
    }
}
