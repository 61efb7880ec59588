//! Allocation traces: see `traces/README.md` for the format.

use super::Operation;

/// What a Linux kernel did that made and destroyed containers.
pub fn linux_containers() -> Vec<Operation> {
    let text = include_str!("../../traces/linux-containers.trace");
    text.lines()
        .map(|line| parse(line).unwrap_or_else(|| panic!("no trace line: {line}")))
        .collect()
}

fn parse(line: &str) -> Option<Operation> {
    let mut words = line.split(' ');
    let kind = words.next()?;
    let mut number = || words.next()?.parse::<u32>().ok();
    let id = number()?;
    match kind {
        "a" => Some(Operation::Alloc {
            id,
            size: number()?.try_into().ok()?,
            align: number()?.try_into().ok()?,
        }),
        "f" => Some(Operation::Free { id }),
        _ => None,
    }
}
