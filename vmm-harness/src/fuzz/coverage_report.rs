//! What runs have reached, in a report: counts for people, sets for whoever adds reports up.

use serde::{Deserialize, Serialize};

use crate::coverage::{Covered, Edges, Features};

/// What runs have reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoverageReport {
    /// Stands for the image's table of edges: sets of one build can be added up.
    pub build: String,
    /// Edges that the image has.
    pub of_edges: usize,
    /// Edges that were reached.
    pub edges: usize,
    /// Pairs of places at which a CPU took over from another.
    pub switches: usize,
    /// Which edges: 64 a word, hexadecimal, the lowest first.
    pub edge_set: Vec<String>,
    /// Which pairs, likewise.
    pub switch_set: Vec<String>,
}

impl CoverageReport {
    /// What was reached of an image's edges.
    pub(super) fn new(edges: Option<&Edges>, reached: &Features) -> Self {
        Self {
            build: edges.map_or(String::new(), |edges| format!("{:#018x}", edges.build())),
            of_edges: edges.map_or(0, Edges::len),
            edges: reached.edges.count(),
            switches: reached.switches.count(),
            edge_set: write(&reached.edges),
            switch_set: write(&reached.switches),
        }
    }

    /// Adds what is in another report of the same build. `None` if a set is no set.
    pub(super) fn add(&mut self, other: &Self) -> Option<()> {
        let mut reached =
            Features { edges: read(&self.edge_set)?, switches: read(&self.switch_set)? };
        reached.edges.add(&read(&other.edge_set)?);
        reached.switches.add(&read(&other.switch_set)?);
        let (edges, switches) = (reached.edges.count(), reached.switches.count());
        let (edge_set, switch_set) = (write(&reached.edges), write(&reached.switches));
        *self = Self { edges, switches, edge_set, switch_set, ..self.clone() };
        Some(())
    }
}

fn write(set: &Covered) -> Vec<String> {
    let words = set.words();
    let used = words.iter().rposition(|&word| word != 0).map_or(0, |last| last + 1);
    words[..used].iter().map(|word| format!("{word:x}")).collect()
}

fn read(set: &[String]) -> Option<Covered> {
    let words: Option<_> = set.iter().map(|word| u64::from_str_radix(word, 16).ok()).collect();
    words.map(Covered::from_words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_added_up_as_they_were_written() {
        let features = |edges: &[usize]| Features {
            edges: edges.iter().copied().collect(),
            switches: [5].into_iter().collect(),
        };
        let mut sum = CoverageReport::new(None, &features(&[1, 64, 300]));
        sum.add(&CoverageReport::new(None, &features(&[1, 2, 1000]))).expect("sets");
        assert_eq!(sum, CoverageReport::new(None, &features(&[1, 2, 64, 300, 1000])));
        assert_eq!((sum.edges, sum.switches), (5, 1));
        let wrong = CoverageReport { edge_set: vec!["x".into()], ..CoverageReport::default() };
        assert_eq!(sum.add(&wrong), None);
    }
}
