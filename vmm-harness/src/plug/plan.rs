//! The plan of plugs: a random walk over the CPUs that is reproducible from its seed.

use percpu_guest::abi::{CpuState, Workload};

use super::Order;

/// The boot CPU stays: the guest's control thread lives there.
const FIRST: u32 = 1;

/// Chooses orders.
///
/// A CPU is taken down only after every workload has worked on it in its present life: a CPU that
/// was idle from plug to unplug would prove nothing.
#[derive(Debug)]
pub struct Plan {
    random: u64,
    possible: u32,
    workloads: Vec<Workload>,
    /// Operations of each workload on each CPU when it last came up.
    born_with: Vec<[u64; 8]>,
    /// The CPU that is due to change.
    due: Option<u32>,
}

/// What the plan must know of a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuNow {
    /// Its state, `None` if it was never heard of.
    pub state: Option<CpuState>,
    /// Operations that ended on it, by workload.
    pub ops: [u64; 8],
}

impl Plan {
    /// A plan over CPUs `0..possible`, while `workloads` run.
    pub fn new(seed: u64, possible: u32, workloads: Vec<Workload>) -> Self {
        Self {
            random: seed,
            possible,
            workloads,
            born_with: vec![[0; 8]; possible as usize],
            due: None,
        }
    }

    /// The next order; `None` while the CPU that is due has not worked yet.
    pub fn next(&mut self, cpu: impl Fn(u32) -> CpuNow) -> Option<Order> {
        if self.possible <= FIRST {
            return None;
        }
        let due = match self.due {
            Some(due) => due,
            None => *self.due.insert(
                FIRST + (random(&mut self.random) % u64::from(self.possible - FIRST)) as u32,
            ),
        };
        let now = cpu(due);
        let order = match now.state {
            Some(CpuState::Online) if self.has_worked(due, &now) => Order::Unplug(due),
            Some(CpuState::Online) => return None,
            _ => Order::Plug(due),
        };
        self.due = None;
        Some(order)
    }

    /// Notes that `cpu` has come up.
    pub fn came_up(&mut self, cpu: u32, now: CpuNow) {
        if let Some(born_with) = self.born_with.get_mut(cpu as usize) {
            *born_with = now.ops;
        }
    }

    /// Whether every workload has worked on `cpu` since it came up.
    pub fn has_worked(&self, cpu: u32, now: &CpuNow) -> bool {
        self.workloads.iter().all(|&workload| {
            let i = workload as usize;
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
        CpuNow { state: Some(CpuState::Online), ops: [ops; 8] }
    }

    #[test]
    fn the_boot_cpu_is_never_ordered_about() {
        let mut plan = Plan::new(7, 3, vec![]);
        for _ in 0..200 {
            let order = plan.next(|_| online(1)).unwrap();
            assert!(matches!(order, Order::Unplug(1 | 2)), "{order:?}");
        }
        assert_eq!(Plan::new(7, 1, vec![]).next(|_| online(1)), None);
    }

    #[test]
    fn a_cpu_goes_down_only_after_every_workload_worked_on_it() {
        let mut plan = Plan::new(1, 2, vec![Workload::Statics, Workload::Mount]);
        assert_eq!(plan.next(|_| CpuNow::default()), Some(Order::Plug(1)));
        plan.came_up(1, online(5));
        assert_eq!(plan.next(|_| online(5)), None);
        let mut half = online(5);
        half.ops[Workload::Statics as usize] = 6;
        assert_eq!(plan.next(|_| half), None);
        assert_eq!(plan.next(|_| online(6)), Some(Order::Unplug(1)));
    }

    #[test]
    fn a_seed_gives_one_plan() {
        let orders = |seed| {
            let mut plan = Plan::new(seed, 32, vec![]);
            (0..50).map(|_| plan.next(|_| CpuNow::default())).collect::<Vec<_>>()
        };
        assert_eq!(orders(3), orders(3));
        assert_ne!(orders(3), orders(4));
    }
}
