//! A run as it is drawn, in a terminal and on a page alike: rows in words, with the source, that can be
//! kept in a report.

use serde::{Deserialize, Serialize};

use super::place::Places;
use super::rows::{Row, Stretch, Why};

/// Lines of the source on either side of the one at which a CPU stood.
const AROUND: u32 = 3;

/// What a CPU is doing while another one runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It was made to stop, and is on its way.
    Stopped,
    /// It waits for another one in a loop.
    Waiting,
    /// It waits for an interrupt.
    Idle,
    /// It is not there.
    Off,
}

/// A line of the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceLine {
    /// Its number.
    pub line: u32,
    /// Its text.
    pub text: String,
}

/// Where a CPU stood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spot {
    /// Function, file and line.
    pub text: String,
    /// The line.
    pub line: u32,
    /// The lines around it, if the file is there.
    pub source: Vec<SourceLine>,
}

/// A stretch for which one CPU ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// Steps of all CPUs at its end.
    pub steps: u64,
    /// The CPU.
    pub cpu: u32,
    /// What all CPUs were doing; of this one it does not count.
    pub lanes: Vec<Standing>,
    /// What happened in it.
    pub notes: Vec<String>,
    /// Where it ended; none if the run went well.
    pub spot: Option<Spot>,
    /// Why it ended.
    pub why: String,
    /// The change of the schedule that ended it, from 1.
    pub change: Option<usize>,
    /// The run was over.
    pub is_last: bool,
}

/// A row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DrawnRow {
    /// A CPU ran.
    Ran(Ran),
    /// The host gave an order.
    Order {
        /// Steps of all CPUs by then.
        steps: u64,
        /// Which.
        text: String,
    },
    /// So much is left out.
    Folded(String),
}

/// A run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drawing {
    /// CPUs that can be.
    pub cpus: u32,
    /// From the beginning.
    pub rows: Vec<DrawnRow>,
}

impl Drawing {
    /// Puts rows into words; the last `with_source` of those that can have it get the source.
    pub(super) fn of(
        (possible, boot_cpus): (u32, u32),
        rows: &[Row],
        places: &mut Places,
        with_source: usize,
    ) -> Self {
        let mut lanes: Vec<_> = (0..possible)
            .map(|cpu| if cpu < boot_cpus { Standing::Idle } else { Standing::Off })
            .collect();
        let stretches = rows.iter().filter(|row| matches!(row, Row::Stretch(_))).count();
        let mut seen = 0;
        let row = |row: &Row| match row {
            Row::Order { steps, text } => DrawnRow::Order { steps: *steps, text: text.clone() },
            Row::Folded { stretches, steps, early } => {
                let what = if *early { "earlier turns" } else { "turns of waiting" };
                DrawnRow::Folded(format!("{stretches} {what}, to step {steps}"))
            }
            Row::Stretch(stretch) => {
                seen += 1;
                let sources = stretches - seen < with_source;
                let ran = ran(stretch, lanes.clone(), sources.then_some(&mut *places));
                stand(&mut lanes, stretch);
                DrawnRow::Ran(ran)
            }
        };
        Self { cpus: possible, rows: rows.iter().map(row).collect() }
    }
}

fn ran(stretch: &Stretch, lanes: Vec<Standing>, places: Option<&mut Places>) -> Ran {
    let why = match stretch.why {
        Why::Switched => "another one's turn".to_owned(),
        Why::Waits => "waits".to_owned(),
        Why::Idle => "idle".to_owned(),
        Why::Dead => "dead".to_owned(),
        Why::Interrupted => "its timer interrupts it".to_owned(),
        Why::Started(cpu) => format!("starts CPU {cpu}"),
        Why::Over => "the end".to_owned(),
    };
    let spot = stretch.place.as_ref().map(|place| Spot {
        text: place.to_string(),
        line: place.line,
        source: places.map(|places| places.around(place, AROUND)).unwrap_or_default(),
    });
    Ran {
        steps: stretch.steps,
        cpu: stretch.cpu,
        lanes,
        notes: stretch.notes.clone(),
        spot,
        why,
        change: stretch.change,
        is_last: stretch.why == Why::Over,
    }
}

/// What CPUs are doing after a stretch.
fn stand(lanes: &mut [Standing], stretch: &Stretch) {
    if let Some(lane) = lanes.get_mut(stretch.cpu as usize) {
        *lane = match stretch.why {
            Why::Waits => Standing::Waiting,
            Why::Idle => Standing::Idle,
            Why::Dead => Standing::Off,
            Why::Switched | Why::Interrupted | Why::Started(_) | Why::Over => Standing::Stopped,
        };
    }
    if let Why::Started(cpu) = stretch.why
        && let Some(lane) = lanes.get_mut(cpu as usize)
    {
        *lane = Standing::Stopped;
    }
}
