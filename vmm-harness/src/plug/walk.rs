//! A plan of plugs without an end: a random walk over the CPUs.

use percpu_guest::abi::{CpuState, MOST_WORKLOADS};

use super::Order;

/// The boot CPU stays: the guest's control thread lives there.
const FIRST: u32 = 1;

/// Chooses orders.
///
/// A CPU is taken down only after every workload has worked on it in its present life: a CPU that
/// was idle from plug to unplug would prove nothing.
#[derive(Debug)]
pub struct Walk {
    random: u64,
    possible: u32,
    /// Their numbers.
    workloads: Vec<usize>,
    /// Operations of each workload on each CPU when it last came up.
    born_with: Vec<[u64; MOST_WORKLOADS]>,
}

/// What the plan must know of a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuNow {
    /// Its state, `None` if it was never heard of.
    pub state: Option<CpuState>,
    /// Operations that ended on it, by workload.
    pub ops: [u64; MOST_WORKLOADS],
}

impl Walk {
    /// A walk over CPUs `0..possible`, while the workloads of these numbers run.
    pub fn new(seed: u64, possible: u32, workloads: Vec<usize>) -> Self {
        Self {
            random: seed,
            possible,
            workloads,
            born_with: vec![[0; MOST_WORKLOADS]; possible as usize],
        }
    }

    /// The next order, for a CPU chosen at random among those that may change; `None` if there is
    /// none at the moment.
    pub fn next(&mut self, cpu: impl Fn(u32) -> CpuNow) -> Option<Order> {
        let others = self.possible.saturating_sub(FIRST);
        if others == 0 {
            return None;
        }
        let start = random(&mut self.random) % u64::from(others);
        (0..u64::from(others)).find_map(|i| {
            let candidate = FIRST + ((start + i) % u64::from(others)) as u32;
            let now = cpu(candidate);
            match now.state {
                Some(CpuState::Online) => {
                    self.has_worked(candidate, &now).then_some(Order::Unplug(candidate))
                }
                _ => Some(Order::Plug(candidate)),
            }
        })
    }

    /// Notes that `cpu` has come up.
    pub fn came_up(&mut self, cpu: u32, now: CpuNow) {
        if let Some(born_with) = self.born_with.get_mut(cpu as usize) {
            *born_with = now.ops;
        }
    }

    /// Whether every workload has worked on `cpu` since it came up.
    pub fn has_worked(&self, cpu: u32, now: &CpuNow) -> bool {
        self.workloads.iter().all(|&i| {
            self.born_with.get(cpu as usize).is_none_or(|born_with| now.ops[i] > born_with[i])
        })
    }
}

/// SplitMix64 (Steele, Lea, Flood, 2014).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn online(ops: u64) -> CpuNow {
        CpuNow { state: Some(CpuState::Online), ops: [ops; MOST_WORKLOADS] }
    }

    #[test]
    fn the_boot_cpu_is_never_ordered_about() {
        let mut walk = Walk::new(7, 3, vec![]);
        for _ in 0..200 {
            let order = walk.next(|_| online(1)).unwrap();
            assert!(matches!(order, Order::Unplug(1 | 2)), "{order:?}");
        }
        assert_eq!(Walk::new(7, 1, vec![]).next(|_| online(1)), None);
    }

    #[test]
    fn a_cpu_goes_down_only_after_every_workload_worked_on_it() {
        let mut walk = Walk::new(1, 2, vec![0, 3]);
        assert_eq!(walk.next(|_| CpuNow::default()), Some(Order::Plug(1)));
        walk.came_up(1, online(5));
        assert_eq!(walk.next(|_| online(5)), None);
        let mut half = online(5);
        half.ops[0] = 6;
        assert_eq!(walk.next(|_| half), None);
        assert_eq!(walk.next(|_| online(6)), Some(Order::Unplug(1)));
    }

    #[test]
    fn a_seed_gives_one_plan() {
        let orders = |seed| {
            let mut walk = Walk::new(seed, 32, vec![]);
            (0..50).map(|_| walk.next(|_| CpuNow::default())).collect::<Vec<_>>()
        };
        assert_eq!(orders(3), orders(3));
        assert_ne!(orders(3), orders(4));
    }
}
