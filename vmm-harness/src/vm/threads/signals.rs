//! Signal handlers: how they are installed, and what becomes of signals that are not about a guest.
//!
//! A handler here runs with all signals blocked, on the thread's alternate stack. It calls nothing that
//! is not async-signal-safe, and leaves `errno` as it was. (The C library keeps two or three signals of
//! its own unblocked, for `setuid` and for cancelling threads. Their handlers touch nothing of ours.)

use std::cell::OnceCell;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;

/// A handler, as the kernel calls it.
pub(in super::super) type Handler =
    extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// Signals by which the kernel says that an instruction failed.
pub(super) const FAULTS: [libc::c_int; 5] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];

/// What was installed for [`FAULTS`] before.
static BEFORE: OnceLock<[libc::sigaction; FAULTS.len()]> = OnceLock::new();

/// The signal by which a CPU is told that an interrupt is raised for it. A standard one, as
/// [`kick`](super::super::kick) says; this is ignored by default.
pub(super) fn nudge() -> libc::c_int {
    libc::SIGURG
}

/// Installs `handler`; the error number if that fails.
pub(in super::super) fn install(signal: libc::c_int, handler: Handler) -> Result<(), i32> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all-zero bytes are a valid `sigaction`, and the calls get what they ask for. The handler
    // has the signature that SA_SIGINFO wants.
    unsafe {
        let action = action.assume_init_mut();
        action.sa_sigaction = (handler as *const ()).expose_provenance();
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigfillset(&mut action.sa_mask);
        match libc::sigaction(signal, action, ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(errno()),
        }
    }
}

/// Installs `handler` for all [`FAULTS`], keeping what was there.
pub(super) fn install_for_faults(handler: Handler) -> Result<(), i32> {
    let before = FAULTS.map(|signal| {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: as above; the call only reads what is installed. It fails for no signal of these.
        unsafe {
            libc::sigaction(signal, ptr::null(), action.as_mut_ptr());
            action.assume_init()
        }
    });
    // Before the first handler: that one looks here.
    let _ = BEFORE.set(before);
    FAULTS.into_iter().try_for_each(|signal| install(signal, handler))
}

/// Hands a fault that is none of a guest's to the handler that was installed before. If there was none,
/// the signal does what it does by default.
pub(super) fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let place = FAULTS.iter().position(|&fault| fault == signal);
    let before = BEFORE.get().zip(place).map(|(before, place)| &before[place]);
    if before.is_some_and(|before| hand_over(before, signal, info, context)) {
        return;
    }
    // SAFETY: `info` is the kernel's. sigaction reads the action, which is all-zero: the default one.
    unsafe {
        libc::sigaction(signal, MaybeUninit::zeroed().as_ptr(), ptr::null_mut());
        // An instruction that failed is executed again and fails again. A breakpoint is not, and what was
        // sent has no instruction.
        if signal == libc::SIGTRAP || (*info).si_code <= 0 {
            libc::raise(signal);
        }
    }
}

/// Calls the handler of `before`. Returns whether there is one.
fn hand_over(
    before: &libc::sigaction,
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) -> bool {
    if matches!(before.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN) {
        return false;
    }
    let handler = ptr::with_exposed_provenance::<()>(before.sa_sigaction);
    if before.sa_flags & libc::SA_SIGINFO != 0 {
        // SAFETY: it was installed as a handler with three arguments, and gets the kernel's.
        let handler = unsafe { std::mem::transmute::<*const (), Handler>(handler) };
        handler(signal, info, context);
    } else {
        // SAFETY: it was installed as a handler with one argument.
        let handler =
            unsafe { std::mem::transmute::<*const (), extern "C" fn(libc::c_int)>(handler) };
        handler(signal);
    }
    true
}

/// Keeps the signal of [`nudge`] from the calling thread while it is not in a guest: what it would say is
/// for the guest, and waits.
pub(super) fn hold_nudges() {
    let mut mask = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the calls get a set of their type.
    unsafe {
        libc::sigemptyset(mask.as_mut_ptr());
        libc::sigaddset(mask.as_mut_ptr(), nudge());
        libc::pthread_sigmask(libc::SIG_BLOCK, mask.as_ptr(), ptr::null_mut());
    }
}

/// Calls `f`, after which `errno` is what it was.
pub(super) fn keep_errno(f: impl FnOnce()) {
    let before = errno();
    f();
    // SAFETY: the location is the thread's own.
    unsafe { *libc::__errno_location() = before };
}

/// The thread's last error number.
pub(super) fn errno() -> i32 {
    // SAFETY: the location is the thread's own.
    unsafe { *libc::__errno_location() }
}

/// The mask of a thread in the guest: everything is blocked but what is about the guest. A handler of
/// somebody else's would run on the guest's stack.
pub(super) fn blocked_in_guest() -> u64 {
    let open = FAULTS.into_iter().chain([nudge(), super::super::kick::signal()]);
    open.fold(!0, |mask, signal| mask & !(1 << (signal - 1)))
}

/// An alternate stack of this thread that is large enough for what the handlers do, from the first call
/// on until the thread ends.
pub(super) fn ensure_stack() -> Result<(), i32> {
    thread_local! {
        static STACK: OnceCell<Result<Stack, i32>> = const { OnceCell::new() };
    }
    STACK.with(|stack| stack.get_or_init(Stack::install).as_ref().map(drop).map_err(|e| *e))
}

/// Bytes of such a stack, below which lies a page that nobody may touch. A frame with wide vector
/// registers takes more than 3 KiB.
const STACK: usize = 64 << 10;
const GUARD: usize = 4096;

struct Stack {
    memory: *mut libc::c_void,
}

impl Stack {
    fn install() -> Result<Self, i32> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        // SAFETY: a new mapping, of which the lowest page is then taken away; and a stack inside of it,
        // which is this thread's until `drop`.
        unsafe {
            let memory = libc::mmap(ptr::null_mut(), GUARD + STACK, access, flags, -1, 0);
            if memory == libc::MAP_FAILED {
                return Err(errno());
            }
            libc::mprotect(memory, GUARD, libc::PROT_NONE);
            let stack =
                libc::stack_t { ss_sp: memory.byte_add(GUARD), ss_flags: 0, ss_size: STACK };
            if libc::sigaltstack(&stack, ptr::null_mut()) != 0 {
                let error = errno();
                libc::munmap(memory, GUARD + STACK);
                return Err(error);
            }
            Ok(Self { memory })
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // Not the one that the thread had before: by now its owner has given it back.
        let none =
            libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: STACK };
        // SAFETY: no handler runs on this thread, which is here. From now on handlers run on the thread's
        // own stack, and this one is used by nobody.
        unsafe {
            libc::sigaltstack(&none, ptr::null_mut());
            libc::munmap(self.memory, GUARD + STACK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI32, Ordering};

    /// Where a signal's handler would run when the last destructor of a thread does.
    static AT_THE_END: AtomicI32 = AtomicI32::new(-1);

    struct Last;

    impl Drop for Last {
        fn drop(&mut self) {
            let mut stack = MaybeUninit::<libc::stack_t>::zeroed();
            // SAFETY: the call writes what is in effect.
            let flags = unsafe {
                libc::sigaltstack(ptr::null(), stack.as_mut_ptr());
                stack.assume_init().ss_flags
            };
            AT_THE_END.store(flags, Ordering::Relaxed);
        }
    }

    /// Threads are kicked until they are joined: a signal may come at their very end.
    #[test]
    fn a_thread_that_ends_leaves_no_stack_behind_that_is_gone() {
        std::thread::spawn(|| {
            thread_local! {
                static LAST: Last = const { Last };
            }
            // What is made first is dropped last.
            LAST.with(|_| ());
            ensure_stack().unwrap();
        })
        .join()
        .unwrap();
        assert_eq!(AT_THE_END.load(Ordering::Relaxed), libc::SS_DISABLE);
    }

    /// The exit status of a child of this process that executes `f` and ends.
    fn status_of_child(f: impl FnOnce()) -> libc::c_int {
        let mut status = 0;
        // SAFETY: the child is a copy of this thread alone. It calls what is async-signal-safe, and ends
        // without a destructor. `waitpid` writes `status`.
        unsafe {
            let child = libc::fork();
            assert!(child >= 0);
            if child == 0 {
                let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                libc::setrlimit(libc::RLIMIT_CORE, &none);
                f();
                libc::_exit(0);
            }
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
        }
        status
    }

    #[test]
    fn a_fault_of_the_host_ends_the_process_as_it_did_before_there_were_handlers() {
        if let Err(why) = super::super::check() {
            eprintln!("{why}: left out");
            return;
        }
        // SAFETY: touches no memory; the process that executes it is to end by it.
        let breakpoint = status_of_child(|| unsafe { std::arch::asm!("int3") });
        // SAFETY: as above.
        let illegal = status_of_child(|| unsafe { std::arch::asm!("ud2") });
        // SAFETY: as above; there is nothing at address 0.
        let load = status_of_child(|| unsafe { std::arch::asm!("mov al, [0]", out("al") _) });
        let signal = |status| libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
        assert_eq!(signal(breakpoint), Some(libc::SIGTRAP));
        assert_eq!(signal(illegal), Some(libc::SIGILL));
        assert_eq!(signal(load), Some(libc::SIGSEGV));
    }

    #[test]
    fn a_kick_arrives_where_no_signal_may_be_queued() {
        for signal in [nudge(), super::super::kick::signal()] {
            let status = status_of_child(|| {
                let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
                // SAFETY: the calls get a limit and a set of their types.
                let pending = unsafe {
                    libc::setrlimit(libc::RLIMIT_SIGPENDING, &none);
                    libc::sigfillset(set.as_mut_ptr());
                    libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
                    super::super::kick::send(libc::gettid(), signal);
                    libc::sigpending(set.as_mut_ptr());
                    libc::sigismember(set.as_ptr(), signal)
                };
                // SAFETY: ends the child.
                unsafe { libc::_exit(pending) };
            });
            assert!(libc::WIFEXITED(status), "{status:#x}");
            assert_eq!(libc::WEXITSTATUS(status), 1, "signal {signal} was lost");
        }
    }

    #[test]
    fn a_handler_from_before_gets_the_arguments_that_it_was_installed_for() {
        static SEEN: AtomicI32 = AtomicI32::new(0);
        extern "C" fn one(signal: libc::c_int) {
            SEEN.store(signal, Ordering::Relaxed);
        }
        extern "C" fn three(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
            // SAFETY: it is the test's.
            SEEN.store(unsafe { (*info).si_code }, Ordering::Relaxed);
        }
        // SAFETY: all-zero bytes are valid values of both.
        let (mut info, mut before) =
            unsafe { MaybeUninit::<(libc::siginfo_t, libc::sigaction)>::zeroed().assume_init() };
        info.si_code = 77;
        let mut seen = |before: &libc::sigaction| {
            let called = hand_over(before, libc::SIGFPE, &mut info, ptr::null_mut());
            called.then(|| SEEN.swap(0, Ordering::Relaxed))
        };
        assert_eq!(seen(&before), None);
        before.sa_sigaction = libc::SIG_IGN;
        assert_eq!(seen(&before), None);
        before.sa_sigaction = (one as *const ()).expose_provenance();
        assert_eq!(seen(&before), Some(libc::SIGFPE));
        before.sa_sigaction = (three as *const ()).expose_provenance();
        before.sa_flags = libc::SA_SIGINFO;
        assert_eq!(seen(&before), Some(77));
    }
}
