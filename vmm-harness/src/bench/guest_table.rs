//! The guest's table of results as the host reads it. Nothing in there is believed: lengths are
//! bounded, codes looked up, text is cleaned of what a terminal would obey.

use std::mem::offset_of;

use percpu_guest::abi::{
    self, BENCH_ROWS, BenchAxis, BenchTable, BenchTarget, BenchTimes, SHARED, Shared,
};

use super::row::{Beside, Row, Target, Unit, Values};
use crate::memory::GuestMem;
use crate::plain::plain;

/// Address of the table.
const TABLE: u64 = SHARED + offset_of!(Shared, bench) as u64;

/// What has been read of the table.
pub(crate) struct Table<'m> {
    mem: &'m GuestMem,
    /// Group of the rows.
    group: &'static str,
    /// Ticks of the time stamp counter in a microsecond.
    tsc_mhz: u32,
    planned: usize,
    read: usize,
}

impl<'m> Table<'m> {
    /// Nothing so far, of rows of `group`.
    pub(crate) fn new(mem: &'m GuestMem, group: &'static str, tsc_mhz: u32) -> Self {
        Self { mem, group, tsc_mhz, planned: 0, read: 0 }
    }

    /// Rows there will be; 0 before the guest says so.
    pub(super) fn planned(&self) -> usize {
        self.planned
    }

    /// Whether every row was read.
    pub(super) fn is_complete(&self) -> bool {
        self.planned > 0 && self.read == self.planned
    }

    /// Whether the image says that it was built with debug assertions.
    pub(super) fn has_debug_assertions(&self) -> bool {
        self.word(offset_of!(BenchTable, debug_assertions)).is_ok_and(|checked| checked != 0)
    }

    /// Rows that came since the last look.
    ///
    /// # Errors
    ///
    /// The table makes no sense; says in what way.
    pub(crate) fn new_rows(&mut self) -> Result<Vec<Row>, String> {
        // The counts first: what they speak of is there.
        let done = self.word(offset_of!(BenchTable, done))?;
        let planned = self.word(offset_of!(BenchTable, planned))?;
        if planned > BENCH_ROWS || done > planned || done < self.read || planned < self.planned {
            return Err(format!(
                "the guest's table of results makes no sense: {done} of {planned} rows are there, \
                 it has room for {BENCH_ROWS}, {} were read",
                self.read
            ));
        }
        self.planned = planned;
        let rows = (self.read..done).map(|number| self.row(number)).collect();
        self.read = done;
        rows
    }

    fn row(&self, number: usize) -> Result<Row, String> {
        let at =
            TABLE + (offset_of!(BenchTable, rows) + number * size_of::<abi::BenchRow>()) as u64;
        let row: abi::BenchRow = self.mem.read(at).map_err(|wild| wild.to_string())?;
        let bound = f64::from(row.bound) / 100.0;
        let axis = match BenchAxis::from_code(row.axis) {
            Some(BenchAxis::AtOnce) => "at once",
            Some(BenchAxis::Online) => "online",
            Some(BenchAxis::None) | None => "",
        };
        let values = |times| self.values(times, row.cpus > 1, row.rounds);
        let beside = |role: &str, name: &str, times| {
            let Values { value, median, .. } = values(times);
            Beside { role: role.into(), name: name.into(), value, median }
        };
        Ok(Row {
            group: self.group.into(),
            family: text(&row.family),
            name: text(&row.name),
            axis: axis.into(),
            x: (!axis.is_empty()).then_some(row.x),
            unit: Unit::Nanoseconds,
            values: values(row.subject),
            beside: vec![
                beside("bare", &text(&row.bare_name), row.bare),
                beside("atomic", "lock xadd", row.shared),
                beside("lock", "spin lock", row.locked),
            ],
            target: match BenchTarget::from_code(row.target) {
                Some(BenchTarget::TimesBare) => Some(Target::TimesBare(bound)),
                Some(BenchTarget::Nanoseconds) => Some(Target::Nanoseconds(bound)),
                Some(BenchTarget::PartOfShared) => Some(Target::PartOfShared(bound)),
                Some(BenchTarget::None) | None => None,
            },
        })
    }

    /// Nanoseconds. What several CPUs do at the same time is faster whenever the host takes one of
    /// them off, so that there the one in the middle counts.
    fn values(&self, times: BenchTimes, several: bool, rounds: u32) -> Values {
        let ns = |thousandths: u64| thousandths as f64 / f64::from(self.tsc_mhz);
        let (min, median) = (ns(times.min), ns(times.median));
        Values {
            value: if several { median } else { min },
            min,
            median,
            p99: ns(times.p99),
            max: None,
            noise: ns(times.noise),
            rounds,
        }
    }

    fn word(&self, field: usize) -> Result<usize, String> {
        let word = self.mem.load_u32(TABLE + field as u64).map_err(|wild| wild.to_string())?;
        Ok(word as usize)
    }
}

/// Text up to the first zero.
fn text(bytes: &[u8]) -> String {
    let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(&bytes[..len]);
    plain(&text).replace('\n', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;

    fn memory() -> GuestMem {
        let size = (SHARED as usize + size_of::<Shared>()).next_multiple_of(4096);
        GuestMem::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap())
    }

    fn set(mem: &GuestMem, planned: u32, done: u32) {
        mem.store_u32(TABLE + offset_of!(BenchTable, planned) as u64, planned).unwrap();
        mem.store_u32(TABLE + offset_of!(BenchTable, done) as u64, done).unwrap();
    }

    /// Fills row `number` with `byte`.
    fn fill(mem: &GuestMem, number: usize, byte: u8) {
        let size = size_of::<abi::BenchRow>();
        let at = TABLE + (offset_of!(BenchTable, rows) + number * size) as u64;
        mem.write(at, &vec![byte; size]).unwrap();
    }

    #[test]
    fn rows_are_read_once_each_and_in_order() {
        let mem = memory();
        let mut table = Table::new(&mem, "core", 1000);
        assert_eq!(table.new_rows(), Ok(Vec::new()));
        assert!(!table.is_complete());
        let at = TABLE + offset_of!(BenchTable, rows) as u64;
        mem.write(at + offset_of!(abi::BenchRow, name) as u64, b"add").unwrap();
        mem.store_u64(at + offset_of!(abi::BenchRow, subject) as u64, 1500).unwrap();
        mem.store_u32(at + offset_of!(abi::BenchRow, target) as u64, 1).unwrap();
        mem.store_u32(at + offset_of!(abi::BenchRow, bound) as u64, 110).unwrap();
        mem.store_u32(at + offset_of!(abi::BenchRow, axis) as u64, 2).unwrap();
        mem.store_u32(at + offset_of!(abi::BenchRow, x) as u64, 64).unwrap();
        set(&mem, 2, 1);
        let rows = table.new_rows().unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].name.as_str(), rows[0].values.min), ("add", 1.5));
        assert_eq!(rows[0].target, Some(Target::TimesBare(1.1)));
        assert_eq!(rows[0].title(), "add, 64 online");
        assert!(!table.is_complete());
        set(&mem, 2, 2);
        assert_eq!(table.new_rows().unwrap().len(), 1);
        assert!(table.is_complete());
    }

    #[test]
    fn of_several_cpus_the_median_counts() {
        let mem = memory();
        let at = TABLE + offset_of!(BenchTable, rows) as u64;
        mem.store_u64(at + offset_of!(abi::BenchRow, subject) as u64, 1500).unwrap();
        mem.store_u64(at + offset_of!(abi::BenchRow, subject) as u64 + 8, 3000).unwrap();
        for (cpus, value) in [(1, 0.75), (2, 1.5)] {
            mem.store_u32(at + offset_of!(abi::BenchRow, cpus) as u64, cpus).unwrap();
            set(&mem, 1, 1);
            let rows = Table::new(&mem, "core", 2000).new_rows().unwrap();
            assert_eq!((rows[0].values.value, rows[0].values.median), (value, 1.5));
        }
    }

    #[test]
    fn counts_that_cannot_be_are_refused() {
        for (planned, done) in [(u32::MAX, 0), (u32::MAX, u32::MAX), (2, 3), (0, 1)] {
            let mem = memory();
            set(&mem, planned, done);
            let error = Table::new(&mem, "core", 1000).new_rows().unwrap_err();
            assert!(error.contains("makes no sense"), "{error}");
        }
        let mem = memory();
        set(&mem, 3, 2);
        let mut table = Table::new(&mem, "core", 1000);
        assert_eq!(table.new_rows().unwrap().len(), 2);
        set(&mem, 3, 1);
        assert!(table.new_rows().is_err(), "rows do not go away");
    }

    #[test]
    fn every_byte_of_a_row_may_be_nonsense() {
        let mem = memory();
        fill(&mem, 0, 0xff);
        fill(&mem, BENCH_ROWS - 1, 0x1b);
        set(&mem, BENCH_ROWS as u32, BENCH_ROWS as u32);
        let rows = Table::new(&mem, "core", 1000).new_rows().unwrap();
        assert_eq!(rows.len(), BENCH_ROWS);
        for row in &rows {
            let texts = [&row.family, &row.name, &row.beside[0].name];
            assert!(texts.iter().all(|text| !text.contains(char::is_control)), "{row:?}");
            assert!(row.values.min.is_finite() && row.target.is_none() && row.x.is_none());
        }
    }
}
