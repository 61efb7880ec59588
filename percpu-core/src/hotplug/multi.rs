//! Steps with instances: several values of one kind, such as devices, that share a place in the
//! order of steps.

use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;

use super::RegisterError;
use super::control::{self, undo};
use super::instances::{
    self, Head, InstanceRef, InstanceStartup, InstanceTeardown, Instances, Node, Unowned,
};
use super::record::Request;
use super::steps::{self, Callbacks, Owner, Section, Step, StepId};
use crate::cpu;
use crate::unwind::{AtEnd, for_each_to_the_end};

/// A registered step whose callbacks run once for each CPU and instance. Linux: a state set up by
/// `cpuhp_setup_state_multi`.
///
/// For a CPU on its way up the start-up is called with the instances in the order in which they were
/// added, for one on its way down the tear-down in reverse. If it fails for one of them, those before
/// it are undone in reverse, and then the steps before this one.
///
/// ```
/// use percpu_core::hotplug::{self, Section};
/// use percpu_core::host;
/// use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
///
/// struct Disk {
///     queues: AtomicU32,
/// }
///
/// host::boot(4).unwrap();
/// let disks = hotplug::register_multi::<Disk>(
///     Section::Online,
///     "disk:queue",
///     Some(|_cpu, disk| {
///         disk.queues.fetch_add(1, Relaxed);
///         Ok(())
///     }),
///     Some(|_cpu, disk| {
///         disk.queues.fetch_sub(1, Relaxed);
///     }),
/// )?;
/// let disk = disks.add(Disk { queues: AtomicU32::new(0) }).map_err(|e| e.error)?;
/// assert_eq!(disk.queues.load(Relaxed), 4);
/// # Ok::<(), hotplug::RegisterError>(())
/// ```
///
/// Dropping it takes the step out. An [`Instance`] borrows it, so none is left then, unless it was
/// given to [`forget`](core::mem::forget); such a one is removed as by its own drop.
pub struct MultiStep<T: Send + Sync + 'static> {
    id: StepId,
    startup: Option<InstanceStartup<T>>,
    teardown: Option<InstanceTeardown<T>>,
}

/// Registers a step with instances at the end of its section; it has none yet. Linux:
/// `cpuhp_setup_state_multi`.
///
/// Called as [`register`](super::register) is.
///
/// # Errors
///
/// There is no room.
pub fn register_multi<T: Send + Sync + 'static>(
    section: Section,
    name: &'static str,
    startup: Option<InstanceStartup<T>>,
    teardown: Option<InstanceTeardown<T>>,
) -> Result<MultiStep<T>, RegisterError> {
    let _control = control::lock();
    let callbacks = Callbacks::Multi(Instances::NONE);
    let step = steps::insert(section, name, callbacks, Owner::User).ok_or(RegisterError::Full)?;
    Ok(MultiStep { id: step.id, startup, teardown })
}

impl<T: Send + Sync + 'static> MultiStep<T> {
    /// The step's id, which orders failures and is found in the table of steps.
    pub fn id(&self) -> StepId {
        self.id
    }

    /// Adds an instance at the end, and runs its start-up for the CPUs that are up, in ascending
    /// order and where the section says. Linux: `cpuhp_state_add_instance`.
    ///
    /// Called as [`register`](super::register) is. Takes memory for the instance and a few words.
    ///
    /// # Errors
    ///
    /// There is no memory; or the start-up failed on a CPU, and was undone on those before it, the
    /// latest first. The value is in the error.
    pub fn add(&self, value: T) -> Result<Instance<'_, T>, AddError<T>> {
        let node = self.node(value)?;
        let control = control::lock();
        // SAFETY: under the control lock; the node is freed after the last use: no mailbox has it when
        // `run` has returned or unwound.
        let (step, instance) = (self.step(), Some(unsafe { InstanceRef::new(node.0.cast()) }));
        if let Err(error) = control::start_up_where_online(&step, instance) {
            drop(control);
            // SAFETY: the node is on no list, and the control lock's holder was this thread.
            let instance = unsafe { Node::into_value(node.into_node()) };
            return Err(AddError { error, instance });
        }
        Ok(self.list(node))
    }

    /// As [`add`](Self::add), but runs nothing for the CPUs that are up: the caller has seen to
    /// them, and what they have is torn down when they go down. Linux:
    /// `cpuhp_state_add_instance_nocalls`.
    ///
    /// # Errors
    ///
    /// There is no memory. The value is in the error.
    pub fn add_nocalls(&self, value: T) -> Result<Instance<'_, T>, AddError<T>> {
        let node = self.node(value)?;
        let _control = control::lock();
        Ok(self.list(node))
    }

    fn node(&self, value: T) -> Result<Unowned<T>, AddError<T>> {
        Node::allocate(value, self.startup, self.teardown)
            .map(Unowned)
            .map_err(|instance| AddError { error: RegisterError::NoMemory, instance })
    }

    /// Puts a node at the end of the list; the caller holds the control lock.
    fn list(&self, node: Unowned<T>) -> Instance<'_, T> {
        let node = node.into_node();
        // SAFETY: under the control lock, says the caller. The node is new, and freed by its
        // `Instance` or by this type's drop, which take it out first.
        steps::change_instances(self.id, |list| unsafe { list.push(node.cast()) });
        Instance { step: self, node }
    }

    fn step(&self) -> Step {
        steps::get(self.id).expect("a step with instances stays until its owner is dropped")
    }

    /// Tears an instance down where CPUs are up, if that is wanted, and ends it.
    ///
    /// # Safety
    ///
    /// The node is on this step's list, and not used again.
    unsafe fn remove(&self, node: NonNull<Head>, calls: bool) {
        let mut control = Some(control::lock());
        if calls {
            control::refuse_to_visit_occupied(&self.step(), Request::Undo);
        }
        // Also when a tear-down panics. Without the lock: a destructor may be about hotplug, too.
        let _free = AtEnd(move || {
            drop(control.take());
            // SAFETY: `_unlist`, which is dropped first, took the node off its list; not used again,
            // says the caller.
            unsafe { instances::free(node) }
        });
        // SAFETY: under the control lock; on this list, says the caller.
        let remove = |list: &mut Instances| unsafe { list.remove(node) };
        let _unlist = AtEnd(|| steps::change_instances(self.id, remove));
        if calls {
            // SAFETY: under the control lock; the node is freed at the end.
            let (step, instance) = (self.step(), unsafe { InstanceRef::new(node) });
            for_each_to_the_end(cpu::online().iter(), |cpu| undo(&step, cpu, Some(instance)));
        }
    }
}

impl<T: Send + Sync + 'static> Drop for MultiStep<T> {
    /// Takes the step out. May sleep, as [`unregister`](super::unregister).
    fn drop(&mut self) {
        while let Callbacks::Multi(list) = self.step().callbacks
            && let Some(forgotten) = list.last()
        {
            // SAFETY: on this list, and its `Instance`, which borrowed this step, was forgotten: the
            // borrow has ended, and with it every borrow of the value.
            unsafe { self.remove(forgotten, true) };
        }
        let _control = control::lock();
        steps::remove(self.id);
    }
}

impl<T: Send + Sync + 'static> fmt::Debug for MultiStep<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MultiStep").field(&self.id).finish()
    }
}

/// A value for which a [`MultiStep`]'s callbacks run, until this is dropped.
///
/// The callbacks see it as `&T`, on whichever CPU and whenever a CPU goes up or down, and so can
/// whoever has the instance, by `*instance`. It stays where it is in memory.
///
/// Dropping it runs the tear-down for the CPUs that are up, in ascending order, and then drops the
/// value; the caller may sleep, is no step's callback, and holds no
/// [`CpusReadGuard`](super::CpusReadGuard). Where it would wait for ever, as
/// [`unregister`](super::unregister), it panics, and the instance stays until the step is dropped. Linux:
/// `cpuhp_state_remove_instance`.
pub struct Instance<'step, T: Send + Sync + 'static> {
    step: &'step MultiStep<T>,
    node: NonNull<Node<T>>,
}

// SAFETY: an instance lends `&T` out, which `T: Sync` allows on any thread, and drops the `T` on the
// thread where it is dropped, which `T: Send` allows.
unsafe impl<T: Send + Sync + 'static> Send for Instance<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync + 'static> Sync for Instance<'_, T> {}

impl<T: Send + Sync + 'static> Instance<'_, T> {
    /// Drops the instance without running the tear-down for the CPUs that are up. Linux:
    /// `cpuhp_state_remove_instance_nocalls`.
    pub fn remove_nocalls(self) {
        let this = core::mem::ManuallyDrop::new(self);
        // SAFETY: the node is this instance's, and listed with its step; `self` is not used again.
        unsafe { this.step.remove(this.node.cast(), false) };
    }
}

impl<T: Send + Sync + 'static> Deref for Instance<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the node is freed at this instance's drop, or at the step's if the instance was
        // forgotten: not while it is borrowed.
        unsafe { Node::value(self.node) }
    }
}

impl<T: Send + Sync + 'static> Drop for Instance<'_, T> {
    fn drop(&mut self) {
        // SAFETY: the node is this instance's, and listed with its step; this is its end.
        unsafe { self.step.remove(self.node.cast(), true) };
    }
}

impl<T: Send + Sync + fmt::Debug + 'static> fmt::Debug for Instance<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Instance").field(&**self).finish()
    }
}

/// Why an instance was not added, and the value again.
pub struct AddError<T> {
    /// Why: never [`RegisterError::Full`].
    pub error: RegisterError,
    /// What was to be added.
    pub instance: T,
}

impl<T> fmt::Debug for AddError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddError").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<T> fmt::Display for AddError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<T> core::error::Error for AddError<T> {}
