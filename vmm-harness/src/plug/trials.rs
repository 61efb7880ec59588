//! The trials of a quiescent point, in their order.

use percpu_guest::abi::{Trial, TrialSize};

use super::Order;
use crate::judge::TrialEnd;

/// Growths that are made to fail at one quiescent point.
const GROWTHS: u32 = 6;

/// Chooses trials.
///
/// Where a growth fails is chosen in turn: after the kernel has granted 0 requests for memory, 1, 2,
/// and so on over the quiescent points of a run, until one grants enough; then from 0 again. So
/// every request of a growth is refused at some time.
#[derive(Debug, Default)]
pub struct Trials {
    /// Quiescent points so far.
    rounds: usize,
    /// Growths of this one.
    growths: u32,
    /// Requests that the next growth is granted, by size.
    granted: [u64; TrialSize::ALL.len()],
}

impl Trials {
    /// The trial that follows `last`, or the first one of a quiescent point; `None` after the last.
    pub fn next(&mut self, last: Option<&TrialEnd>) -> Option<Order> {
        let size = TrialSize::ALL[self.rounds % TrialSize::ALL.len()];
        let granted = &mut self.granted[size as usize];
        let trial = match last {
            None => Trial::PrepareFrees,
            Some(end) => match end.trial {
                // While the caches are as the workloads have left them.
                Trial::PrepareFrees => Trial::RefusedFrees,
                Trial::RefusedFrees => Trial::Balance,
                Trial::Balance => Trial::FillUp,
                Trial::FillUp if end.as_meant != 0 => {
                    self.growths = 1;
                    Trial::FailedGrowth
                }
                Trial::FailedGrowth if end.as_meant == end.tried => {
                    *granted += 1;
                    self.growths += 1;
                    if self.growths <= GROWTHS { Trial::FailedGrowth } else { Trial::Release }
                }
                Trial::FailedGrowth => {
                    *granted = 0;
                    Trial::Release
                }
                Trial::FillUp => Trial::Release,
                Trial::Release => {
                    self.rounds += 1;
                    return None;
                }
            },
        };
        let argument = match trial {
            Trial::FillUp => size as u64,
            Trial::FailedGrowth => *granted | (size as u64) << 32,
            _ => 0,
        };
        Some(Order::Trial(trial, argument))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A round in a guest whose growth makes `requests` requests; what failed growths were granted.
    fn round(trials: &mut Trials, requests: u64) -> Vec<u64> {
        let mut granted = Vec::new();
        let mut last = None;
        while let Some(Order::Trial(trial, argument)) = trials.next(last.as_ref()) {
            let argument = argument & 0xffff_ffff;
            let refused = trial != Trial::FailedGrowth || argument < requests;
            if trial == Trial::FailedGrowth && refused {
                granted.push(argument);
            }
            let as_meant = u64::from(refused);
            last = Some(TrialEnd { trial, tried: 1, as_meant, command: 0 });
        }
        assert_eq!(last.map(|end| end.trial), Some(Trial::Release));
        granted
    }

    #[test]
    fn every_request_of_a_growth_is_refused_in_turn() {
        let mut trials = Trials::default();
        let mut by_size = [Vec::new(), Vec::new()];
        for n in 0..8 {
            by_size[n % 2].extend(round(&mut trials, 8));
        }
        let twice = [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7];
        assert_eq!(by_size, [twice, twice]);
    }
}
