//! What must happen: steps, instances and ordered failures as plain lists, and the callbacks that
//! follow from them.

use percpu_core::hotplug::{Section, StepError, StepId};

use super::{REFUSED, entry};
use crate::CPUS;

/// A step's or an instance's callbacks, as the reference knows them.
#[derive(Clone)]
pub struct Callbacks {
    pub name: String,
    pub refuses: u32,
}

/// What a step consists of.
#[derive(Clone)]
pub enum Kind {
    /// One pair of callbacks, of this number.
    Single(usize, Callbacks),
    /// Any number.
    Multi(Vec<Callbacks>),
}

/// A step, as the reference knows it.
#[derive(Clone)]
pub struct Step {
    pub id: StepId,
    pub section: Section,
    pub kind: Kind,
    /// CPUs for which it is to fail.
    pub fails: u32,
    /// CPUs that are up without it.
    pub missing: u32,
}

/// What must happen. Steps are in the order in which they were registered.
#[derive(Default)]
pub struct Reference {
    pub steps: Vec<Step>,
    pub up: u32,
    /// For each CPU the instance that is to fail.
    pub fails: [Option<(StepId, usize)>; CPUS],
    pub log: Vec<String>,
}

impl Reference {
    /// Steps in the order in which they start.
    pub fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.steps.len()).collect();
        order.sort_by_key(|&n| self.steps[n].section);
        order
    }

    pub fn cpus_up(&self) -> Vec<usize> {
        (0..CPUS).filter(|&cpu| self.up & 1 << cpu != 0).collect()
    }

    pub fn saw(&mut self, what: &str, callbacks: &Callbacks, cpu: usize) {
        self.log.push(entry(what, &callbacks.name, crate::cpu(cpu)));
    }

    pub fn call_start(&mut self, callbacks: &Callbacks, cpu: usize) -> Result<(), StepError> {
        let refuse = callbacks.refuses & 1 << cpu != 0;
        self.saw(if refuse { "refused" } else { "up" }, callbacks, cpu);
        if refuse { Err(REFUSED) } else { Ok(()) }
    }

    pub fn take_failure(&mut self, step: usize, cpu: usize) -> Result<(), StepError> {
        let fails = self.steps[step].fails & 1 << cpu != 0;
        self.steps[step].fails &= !(1 << cpu);
        if fails { Err(StepError::INJECTED) } else { Ok(()) }
    }

    pub fn take_instance_failure(
        &mut self,
        step: usize,
        nth: usize,
        cpu: usize,
    ) -> Result<(), StepError> {
        match self.fails[cpu] == Some((self.steps[step].id, nth)) {
            false => Ok(()),
            true => {
                self.fails[cpu] = None;
                Err(StepError::INJECTED)
            }
        }
    }

    pub fn start_instances(
        &mut self,
        step: usize,
        from: usize,
        list: &[Callbacks],
        cpu: usize,
    ) -> Result<(), StepError> {
        for nth in from..list.len() {
            let started = self
                .take_instance_failure(step, nth, cpu)
                .and_then(|()| self.call_start(&list[nth], cpu));
            if let Err(error) = started {
                list[..nth].iter().rev().for_each(|it| self.saw("down", it, cpu));
                return Err(error);
            }
        }
        Ok(())
    }

    pub fn start(&mut self, step: usize, cpu: usize) -> Result<(), StepError> {
        self.take_failure(step, cpu)?;
        match self.steps[step].kind.clone() {
            Kind::Single(_, callbacks) => self.call_start(&callbacks, cpu),
            Kind::Multi(list) => self.start_instances(step, 0, &list, cpu),
        }
    }

    pub fn undo(&mut self, step: usize, cpu: usize) {
        let missing = self.steps[step].missing & 1 << cpu != 0;
        self.steps[step].missing &= !(1 << cpu);
        if missing {
            return;
        }
        match self.steps[step].kind.clone() {
            Kind::Single(_, callbacks) => self.saw("down", &callbacks, cpu),
            Kind::Multi(list) => list.iter().rev().for_each(|it| self.saw("down", it, cpu)),
        }
    }

    /// The tear-down of an ONLINE step on the way down, which may fail.
    pub fn stop(&mut self, step: usize, cpu: usize) -> Result<(), StepError> {
        if self.steps[step].missing & 1 << cpu != 0 {
            self.undo(step, cpu);
            return Ok(());
        }
        self.take_failure(step, cpu)?;
        let Kind::Multi(list) = self.steps[step].kind.clone() else {
            self.undo(step, cpu);
            return Ok(());
        };
        for nth in (0..list.len()).rev() {
            if let Err(error) = self.take_instance_failure(step, nth, cpu) {
                if self.start_instances(step, nth + 1, &list, cpu).is_err() {
                    self.steps[step].missing |= 1 << cpu;
                }
                return Err(error);
            }
            self.saw("down", &list[nth], cpu);
        }
        Ok(())
    }

    pub fn cpu_up(&mut self, cpu: usize) -> Result<(), Option<(StepId, StepError)>> {
        if self.up & 1 << cpu != 0 {
            return Err(None);
        }
        let order = self.order();
        for (n, &step) in order.iter().enumerate() {
            if let Err(error) = self.start(step, cpu) {
                order[..n].iter().rev().for_each(|&done| self.undo(done, cpu));
                return Err(Some((self.steps[step].id, error)));
            }
        }
        self.up |= 1 << cpu;
        Ok(())
    }

    pub fn cpu_down(&mut self, cpu: usize) -> Result<(), Option<(StepId, StepError)>> {
        if self.up & 1 << cpu == 0 || self.up == 1 << cpu {
            return Err(None);
        }
        let order = self.order();
        for (n, &step) in order.iter().enumerate().rev() {
            if self.steps[step].section != Section::Online {
                self.undo(step, cpu);
            } else if let Err(error) = self.stop(step, cpu) {
                for &stopped in &order[n + 1..] {
                    if self.start(stopped, cpu).is_err() {
                        self.steps[stopped].missing |= 1 << cpu;
                    }
                }
                return Err(Some((self.steps[step].id, error)));
            }
        }
        self.up &= !(1 << cpu);
        Ok(())
    }

    /// Starts what is new, by `start`, for the CPUs that are up; the first where that failed.
    pub fn catch_up(
        &mut self,
        mut start: impl FnMut(&mut Self, usize) -> Result<(), StepError>,
    ) -> Result<(), (usize, StepError)> {
        for cpu in self.cpus_up() {
            start(self, cpu).map_err(|error| (cpu, error))?;
        }
        Ok(())
    }

    pub fn add(
        &mut self,
        step: usize,
        callbacks: Callbacks,
        calls: bool,
    ) -> Result<(), (usize, StepError)> {
        let Kind::Multi(list) = self.steps[step].kind.clone() else { unreachable!() };
        let missing = self.steps[step].missing;
        if calls {
            let caught_up = self.catch_up(|this, cpu| {
                if missing & 1 << cpu != 0 {
                    return Ok(());
                }
                this.take_failure(step, cpu)?;
                this.take_instance_failure(step, list.len(), cpu)?;
                this.call_start(&callbacks, cpu)
            });
            if let Err((failed, error)) = caught_up {
                let has = |cpu: &usize| *cpu < failed && missing & 1 << cpu == 0;
                for cpu in self.cpus_up().into_iter().filter(has).rev() {
                    self.saw("down", &callbacks, cpu);
                }
                return Err((failed, error));
            }
        }
        let Kind::Multi(list) = &mut self.steps[step].kind else { unreachable!() };
        list.push(callbacks);
        Ok(())
    }

    pub fn remove(&mut self, step: usize, instance: usize, calls: bool) {
        let missing = self.steps[step].missing;
        let Kind::Multi(list) = &mut self.steps[step].kind else { unreachable!() };
        let callbacks = list.remove(instance);
        for cpu in self.cpus_up().into_iter().filter(|cpu| calls && missing & 1 << cpu == 0) {
            self.saw("down", &callbacks, cpu);
        }
    }

    pub fn unregister(&mut self, step: usize, calls: bool) {
        for cpu in self.cpus_up().into_iter().filter(|_| calls) {
            self.undo(step, cpu);
        }
        let gone = self.steps.remove(step);
        for order in &mut self.fails {
            order.take_if(|(id, _)| *id == gone.id);
        }
    }
}
