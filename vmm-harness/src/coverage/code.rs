//! Which instructions ran, out of the edges that were reached.
//!
//! The compiler gives no flag to a basic block of which the flags of others tell whether it ran: one
//! that runs whenever a block before it did, or whenever one after it does. So a function is taken apart
//! into basic blocks once more, from its machine code, and a block without a flag ran if
//! - one can come to it from a block that ran, through blocks without flags only, and
//! - one can go on from it, through blocks without flags, to a block that ran or out of the function.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind};

/// An instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ran {
    /// Where it is.
    pub(super) address: u64,
    /// Whether it ran.
    pub(super) ran: bool,
}

/// A basic block.
#[derive(Default)]
struct Block {
    /// Addresses of its instructions.
    instructions: Vec<u64>,
    /// Whether its flag is set, if it has one.
    flag: Option<bool>,
    /// Blocks that may run next.
    next: Vec<usize>,
    /// The function may be left from it.
    leaves: bool,
}

/// Which of a function's instructions ran: `code` is the function at `start`, `flags` says of each
/// address that an edge leads to whether it was reached.
pub(super) fn ran(start: u64, code: &[u8], flags: &BTreeMap<u64, bool>) -> Vec<Ran> {
    let blocks = blocks(start, code, flags);
    let next: Vec<_> = blocks.iter().map(|block| block.next.clone()).collect();
    let mut before = vec![Vec::new(); blocks.len()];
    for (i, next) in next.iter().enumerate() {
        next.iter().for_each(|&next| before[next].push(i));
    }
    let has_run = |block: &Block| block.flag == Some(true);
    let entered = spread(&blocks, &next, has_run);
    let left =
        spread(&blocks, &before, |block| has_run(block) || (block.flag.is_none() && block.leaves));
    let of_block = |(i, block): (usize, &Block)| {
        let ran = block.flag.unwrap_or(entered[i] && left[i]);
        block.instructions.iter().map(move |&address| Ran { address, ran }).collect::<Vec<_>>()
    };
    blocks.iter().enumerate().flat_map(of_block).collect()
}

/// The blocks that are the first ones, and those that follow by `steps` and have no flag.
fn spread(blocks: &[Block], steps: &[Vec<usize>], is_first: impl Fn(&Block) -> bool) -> Vec<bool> {
    let mut found: Vec<_> = blocks.iter().map(is_first).collect();
    let mut todo: Vec<_> = (0..blocks.len()).filter(|&i| found[i]).collect();
    while let Some(i) = todo.pop() {
        for &step in &steps[i] {
            if blocks[step].flag.is_none() && !std::mem::replace(&mut found[step], true) {
                todo.push(step);
            }
        }
    }
    found
}

/// Takes a function apart.
fn blocks(start: u64, code: &[u8], flags: &BTreeMap<u64, bool>) -> Vec<Block> {
    let end = start.saturating_add(code.len() as u64);
    let decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
    let instructions: Vec<_> = decoder.into_iter().collect();
    let mut begins: BTreeSet<_> = flags.range(start..end).map(|(&address, _)| address).collect();
    begins.insert(start);
    for instruction in &instructions {
        begins.extend(target(instruction).filter(|target| (start..end).contains(target)));
        if ends_block(instruction) {
            begins.insert(instruction.next_ip());
        }
    }
    let mut blocks: Vec<Block> = Vec::new();
    // Of each block, its first address and its last instruction.
    let mut ends: Vec<Instruction> = Vec::new();
    let mut at = HashMap::new();
    for instruction in instructions {
        let address = instruction.ip();
        if begins.contains(&address) {
            at.insert(address, blocks.len());
            blocks.push(Block { flag: flags.get(&address).copied(), ..Block::default() });
            ends.push(instruction);
        }
        let last = blocks.len() - 1;
        blocks[last].instructions.push(address);
        ends[last] = instruction;
    }
    connect(&mut blocks, &ends, &at);
    blocks
}

/// Finds out which blocks follow each other, from the last instruction of each.
fn connect(blocks: &mut [Block], ends: &[Instruction], at: &HashMap<u64, usize>) {
    let mut computed = Vec::new();
    for (i, (block, end)) in blocks.iter_mut().zip(ends).enumerate() {
        let falls_through = match end.flow_control() {
            FlowControl::UnconditionalBranch | FlowControl::Exception => false,
            FlowControl::Return => {
                block.leaves = true;
                false
            }
            FlowControl::IndirectBranch => {
                computed.push(i);
                false
            }
            _ => true,
        };
        if let Some(target) = target(end) {
            match at.get(&target) {
                Some(&next) => block.next.push(next),
                // A jump out of the function is a call at its end.
                None => block.leaves = true,
            }
        }
        if falls_through && let Some(&next) = at.get(&end.next_ip()) {
            block.next.push(next);
        }
    }
    // A jump by a table goes to a block that nothing else leads to.
    let mut follows = vec![false; blocks.len()];
    blocks.iter().flat_map(|block| &block.next).for_each(|&next| follows[next] = true);
    let orphans: Vec<_> = (1..blocks.len()).filter(|&i| !follows[i]).collect();
    for i in computed {
        blocks[i].next.extend(&orphans);
        blocks[i].leaves = true;
    }
}

/// Where a jump goes, if its target is a part of it.
fn target(instruction: &Instruction) -> Option<u64> {
    let jumps = matches!(
        instruction.flow_control(),
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
    );
    (jumps && instruction.op0_kind() == OpKind::NearBranch64)
        .then(|| instruction.near_branch_target())
}

fn ends_block(instruction: &Instruction) -> bool {
    !matches!(
        instruction.flow_control(),
        FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall | FlowControl::Interrupt
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 0x1000;

    /// The addresses, from the start, of instructions that ran. Flags are given likewise.
    fn ran_at(code: &[u8], flags: &[(u64, bool)]) -> Vec<u64> {
        let flags = flags.iter().map(|&(at, reached)| (START + at, reached)).collect();
        let ran = ran(START, code, &flags).into_iter();
        ran.filter(|ran| ran.ran).map(|ran| ran.address - START).collect()
    }

    #[test]
    fn code_without_branches_runs_to_its_end() {
        // nop; call; nop; ret; nop
        let code = [0x90, 0xe8, 0, 0, 0, 0, 0x90, 0xc3, 0x90];
        assert_eq!(ran_at(&code, &[(0, true)]), [0, 1, 6, 7]);
        assert!(ran_at(&code, &[(0, false)]).is_empty());
    }

    #[test]
    fn what_follows_a_check_that_did_not_fail_ran() {
        // 0: jz 4; 2: nop; 3: ret; 4: ud2, which has a flag.
        let code = [0x74, 2, 0x90, 0xc3, 0x0f, 0x0b];
        assert_eq!(ran_at(&code, &[(0, true), (4, false)]), [0, 2, 3]);
        // It failed each time: the compiler would have given the rest no flag only if that told.
        assert_eq!(ran_at(&code, &[(0, true), (2, false), (4, true)]), [0, 4]);
    }

    #[test]
    fn a_block_from_which_nothing_that_ran_can_be_reached_did_not_run() {
        // 0: jz 6; 2: jz 5, without a flag; 4: ret; 5: ret; 6: ret
        let code = [0x74, 4, 0x74, 1, 0xc3, 0xc3, 0xc3];
        assert_eq!(ran_at(&code, &[(0, true), (4, false), (5, false), (6, true)]), [0, 6]);
        assert_eq!(ran_at(&code, &[(0, true), (4, true), (5, false), (6, false)]), [0, 2, 4]);
    }

    #[test]
    fn where_branches_meet_ran_if_either_did() {
        // 0: jz 5; 2: nop; 3: jmp 6; 5: nop; 6: ret, without a flag
        let code = [0x74, 3, 0x90, 0xeb, 1, 0x90, 0xc3];
        assert_eq!(ran_at(&code, &[(0, true), (2, true), (5, false)]), [0, 2, 3, 6]);
        assert_eq!(ran_at(&code, &[(0, true), (2, false), (5, true)]), [0, 5, 6]);
        assert!(ran_at(&code, &[(0, false), (2, false), (5, false)]).is_empty());
    }

    #[test]
    fn a_loop_that_was_entered_ran() {
        // 0: nop; 1: nop, without a flag; 2: jnz 1; 4: ret
        let code = [0x90, 0x90, 0x75, 0xfd, 0xc3];
        assert_eq!(ran_at(&code, &[(0, true)]), [0, 1, 2, 4]);
    }

    #[test]
    fn cases_of_a_table_of_jumps_are_told_by_their_flags() {
        // 0: jmp rax; 2: ret; 3: ret; 4: nop, which nothing leads to and has no flag; 5: ret
        let code = [0xff, 0xe0, 0xc3, 0xc3, 0x90, 0xc3];
        assert_eq!(ran_at(&code, &[(0, true), (2, true), (3, false)]), [0, 2, 4, 5]);
    }

    #[test]
    fn a_jump_out_of_the_function_leaves_it() {
        // 0: jz 4; 2: jmp far behind; 4: ud2
        let code = [0x74, 2, 0xeb, 0x70, 0x0f, 0x0b];
        assert_eq!(ran_at(&code, &[(0, true), (4, false)]), [0, 2]);
    }

    #[test]
    fn what_is_no_code_does_no_harm() {
        // Cut off in the middle, an invalid instruction, an edge into the middle of one.
        for code in [&[0xe8u8, 0][..], &[0x06, 0x06], &[0xb8, 1, 2, 3, 4, 0xc3], &[]] {
            let flags = BTreeMap::from([(START, true), (START + 2, true), (START + 100, true)]);
            assert!(ran(START, code, &flags).len() <= code.len());
        }
    }
}
