//! `alloc`: the allocator on recorded and on made-up loads, measured on the host by percpu-core's own
//! program, whose rows are taken over.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use super::Bench;
use super::guest::Stop;
use super::report::read_rows;
use crate::error::Error;

/// Runs the program and adds its rows.
pub(super) fn measure(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let Some(program) = bench.alloc_program else {
        let note = "alloc: without --alloc-program (see `cargo xtask bench`) it is not measured";
        bench.report.notes.push(note.into());
        return Ok(());
    };
    bench.live.step("percpu-core's own program, on the host");
    let rows = Scratch::new();
    let mut command = Command::new(program);
    command.args(["alloc", "--json"]).arg(&rows.0).stdin(Stdio::null()).stdout(Stdio::null());
    if bench.quick {
        command.arg("--quick");
    }
    let status = command.status().map_err(|error| {
        Error::Usage(format!("--alloc-program {} cannot be run: {error}", program.display()))
    })?;
    // It gets the same Ctrl-C and ends by it.
    if bench.interrupted.load(Ordering::Relaxed) {
        return Err(Stop::Interrupted);
    }
    if !status.success() {
        let failed = format!("--alloc-program {} failed: {status}", program.display());
        return Err(Stop::Failed(Error::Usage(failed)));
    }
    bench.report.add(read_rows(&rows.0)?);
    Ok(())
}

/// A file that goes away.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let name = format!("percpu-bench-{}.json", std::process::id());
        Self(Path::new(&std::env::temp_dir()).join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
