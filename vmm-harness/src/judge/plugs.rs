//! What is judged at each plug and unplug, and while a CPU goes down.

use percpu_guest::abi::PlugError;

use super::finding::Findings;
use super::still::{self, Change};
use super::{Judge, counters};

impl Judge {
    /// Remembers what a plug or an unplug, which is about to be ordered, must keep. None is under
    /// way.
    pub fn before_plug(&mut self) {
        self.at_plug(|judge, findings| {
            let Some(layout) = judge.layout.clone() else { return };
            let mem = judge.mem.clone();
            judge.still.before(&mem.address_space(), &layout, &judge.shadow, findings);
        });
    }

    /// K6: looks whether a sum would count the CPU that goes down now.
    pub fn during_unplug(&mut self) {
        self.at_plug(|judge, findings| {
            if let Some(layout) = &judge.layout {
                still::check_dying(&judge.mem, layout, &judge.shadow, findings);
            }
        });
    }

    /// K2, K3, K6: a CPU has come up, or not, and nothing else was ordered since.
    pub fn after_plug(&mut self, cpu: u32, result: Result<(), PlugError>) {
        self.learn_units();
        self.after((Change::Up, cpu), result);
    }

    /// K2, K3, K5, K6: a CPU has gone down, or not, and nothing else was ordered since.
    pub fn after_unplug(&mut self, cpu: u32, result: Result<(), PlugError>) {
        self.after((Change::Down, cpu), result);
        if self.rings.is_complete() {
            self.check_offline_locals(|offline| offline == cpu);
        }
    }

    fn after(&mut self, change: (Change, u32), result: Result<(), PlugError>) {
        self.at_plug(|judge, findings| {
            let Some(layout) = judge.layout.clone() else { return };
            let mem = judge.mem.clone();
            let space = mem.address_space();
            judge.still.after(&space, &layout, change, result, findings);
            still::check_masks(&space, &layout, change, result, findings);
            judge.note_batch(&space, &layout);
            let batch = counters::check_batch(&space, &layout, findings);
            batch.unwrap_or_else(|violation| findings.report(violation));
        });
    }

    /// Does as long as all that happened is known.
    fn at_plug(&mut self, look: impl FnOnce(&mut Self, &mut Findings)) {
        if self.rings.is_complete() {
            let mut findings = Findings::default();
            look(self, &mut findings);
            self.tally.add(findings, self.shadow.now);
        }
    }
}
