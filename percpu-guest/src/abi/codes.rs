//! Numbers that both sides give a meaning: doorbells, commands, events, and what they speak of.

macro_rules! codes {
    ($($(#[$m:meta])* pub enum $name:ident: $repr:ident { $($(#[$vm:meta])* $variant:ident = $value:expr,)* })*) => {$(
        $(#[$m])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr($repr)]
        pub enum $name { $($(#[$vm])* $variant = $value,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The one with this code, if there is one.
            pub const fn from_code(code: $repr) -> Option<Self> {
                match code { $($value => Some(Self::$variant),)* _ => None }
            }
        }
    )*};
}

codes! {
    /// What a store to the doorbell page says.
    pub enum Doorbell: u8 {
        /// The guest has executed its first instructions.
        Hello = 1,
        /// There is an event the host waits for (a plug is complete, a test is over).
        Event = 2,
        /// This CPU waits for one that may not be running: let others have the host's CPU.
        Yield = 3,
        /// Start the AP whose number is the argument (`direct` boot).
        StartCpu = 4,
        /// This CPU is dead and executes nothing more: its vCPU may be parked.
        Dead = 5,
        /// An exception nobody expected: the argument is the address of an [`ExceptionFrame`](super::ExceptionFrame).
        Exception = 6,
        /// The kernel panicked: the argument is the address of a [`PanicRecord`](super::PanicRecord).
        Panic = 7,
        /// The guest has nothing more to do.
        Exit = 8,
        /// Where CPUs run one at a time: the moment has come at which the host wants to be asked, or,
        /// argument 1, no CPU will ever be able to run.
        Switch = 9,
        /// This CPU has nothing to do until an interrupt is pending.
        Idle = 10,
        /// The guest has booted and every run from here on begins alike.
        Ready = 11,
        /// The pages that the host listed are as it wants them.
        Restored = 12,
    }

    /// What a CPU is doing, as it says itself.
    pub enum CpuState: u32 {
        /// Never started, or dead and parked.
        Offline = 0,
        /// Between the start signal and the online mask.
        Starting = 1,
        /// Runs threads.
        Online = 2,
        /// On its way down.
        Dying = 3,
        /// Has left every mask; waits to be parked.
        Dead = 4,
        /// Stopped by a panic or an exception.
        Crashed = 5,
    }

    /// Where CPUs run one at a time: whether one can.
    pub enum Standing: u32 {
        /// It was not started, or is dead.
        Off = 0,
        /// It runs when it is its turn.
        Ready = 1,
        /// It waits for another CPU in a loop and is let be until a moment.
        Waiting = 2,
        /// It waits for an interrupt. From a moment on it gets one early if there is work for it.
        Idle = 3,
    }

    /// What the schedule changes at a moment.
    pub enum ChangeKind: u32 {
        /// The CPU that would run gets the lowest priority.
        Demote = 1,
        /// The CPU that would run is interrupted by its timer, before its time.
        Interrupt = 2,
        /// A CPU gets the highest priority.
        Promote = 3,
    }

    /// Why a CPU did not run on.
    pub enum StayEnd: u16 {
        /// The schedule said so.
        Due = 0,
        /// It waits for another CPU in a loop.
        Yield = 1,
        /// It waits for an interrupt.
        Idle = 2,
        /// It is dead.
        Dead = 3,
        /// It has started a CPU, whose number is noted, and goes on.
        Started = 4,
        /// It gets an interrupt, whose vector is noted.
        Interrupted = 5,
    }

    /// How CPUs after the first are started.
    pub enum BootMode: u32 {
        /// The guest sends INIT and SIPI.
        Sipi = 0,
        /// The host sets the vCPU's registers.
        Direct = 1,
    }

    /// What the host asks of the guest.
    pub enum CommandKind: u32 {
        /// Bring CPU `arg0` up.
        Plug = 1,
        /// Take CPU `arg0` down.
        Unplug = 2,
        /// From now on the hotplug step numbered `arg1` fails, once, for CPU `arg0`.
        FailStep = 3,
        /// Carry out [`Trial`] `arg0` with argument `arg1`, while all workloads rest.
        Trial = 4,
    }

    /// What the control thread does on purpose at a quiescent point, for the host to judge by what
    /// it finds before and after.
    pub enum Trial: u32 {
        /// Allocate a few areas and free some of them again.
        PrepareFrees = 1,
        /// Free what is no live area: what `PrepareFrees` freed, the inside of what it kept, statics,
        /// addresses that lead nowhere, and null. Changes nothing (I16).
        RefusedFrees = 2,
        /// Balance the allocator (I15).
        Balance = 3,
        /// Allocate until the next area needs more memory. Argument: a [`TrialSize`].
        FillUp = 4,
        /// Allocate one more area while the kernel grants only so many requests for memory. A
        /// failure changes nothing (I17). Argument: requests granted, and a [`TrialSize`] << 32.
        FailedGrowth = 5,
        /// Free all that the trials hold.
        Release = 6,
    }

    /// Sizes of areas of [`Trial::FillUp`] and [`Trial::FailedGrowth`].
    pub enum TrialSize: u32 {
        /// A page: more memory means a page of a chunk that is there.
        Page = 0,
        /// The largest there is: more memory means another chunk.
        Largest = 1,
    }

    /// What the guest tells the host.
    pub enum EventKind: u16 {
        /// Set-up is done, roots are valid.
        Booted = 1,
        /// A plug command is done. a0 = CPU, a1 = 0 or an error code ([`PlugError`]), a2 = command's sequence
        /// number, a3 = the time stamp counter when the control thread took the command.
        PlugDone = 2,
        /// An unplug command is done. As `PlugDone`.
        UnplugDone = 3,
        /// CPU a0 changed to [`CpuState`] a1.
        CpuChanged = 4,
        /// An area was handed out. a0 = per-CPU pointer, a1 = size as asked, a2 = alignment,
        /// a3 = what fills it (see [`AreaContent`]), a4 = fill seed.
        Alloc = 5,
        /// An area is about to be freed. a0 = per-CPU pointer.
        Free = 6,
        /// The content of area a0 is now a3, with seed a4.
        Filled = 7,
        /// A counter was made. a0 = address, a1 = initial amount, a2 = ledger slot, a3 = ledger row,
        /// or [`ALL_ROWS`](super::ALL_ROWS), or [`IN_ACCOUNT`](super::IN_ACCOUNT): then a2 is an
        /// account's number; a4 = [`CounterRole`].
        CounterInit = 8,
        /// A counter is about to be destroyed. a0 = address.
        CounterDestroy = 9,
        /// A conserved sum that is no `percpu_counter`: a0 = [`SumKind`], a1 = per-CPU pointer, a2 = ledger slot,
        /// a3 = initial sum.
        SumInit = 10,
        /// The guest itself saw an invariant broken. a0 = invariant ([`Invariant`]), a1 = CPU it concerns, a2 = object,
        /// a3 = seen, a4 = expected.
        Violation = 11,
        /// A guest test ended. a0 = 1 passed, 0 failed.
        TestDone = 12,
        /// An allocation was refused for want of memory. a0 = size, a1 = alignment.
        AllocFailed = 13,
        /// A trial is over. a0 = [`Trial`], a1 = operations tried, a2 = those that ended as specified
        /// (`RefusedFrees`), were refused (`FailedGrowth`, `FillUp`), a3 = command's sequence number.
        TrialDone = 14,
        /// An object that is counted by references begins a life. a0 = [`Holder`], a1 = object, a2 =
        /// ledger slot of the references, a3 = number of the life, from 1.
        LifeBegun = 15,
        /// The reference that keeps the object of a life is about to be dropped. As `LifeBegun`.
        LifeEnding = 16,
        /// It has that reference again, in the same life. As `LifeBegun`.
        LifeResumed = 17,
        /// The last reference of a life was seen to go. a0, a1, a3 as `LifeBegun`, a2 = references
        /// that the ledger showed then.
        LifeEnded = 18,
        /// Something of the image's own, for checks of its own: a0..a4 are what they make of them.
        Note = 19,
    }

    /// What is counted by references.
    pub enum Holder: u32 {
        /// A mount: the tree holds it.
        Mount = 0,
        /// A `percpu_ref`: it holds itself until it is killed.
        Ref = 1,
    }

    /// What is done to a counter.
    pub enum CounterRole: u32 {
        /// Anything.
        Plain = 0,
        /// A CPU that comes up adds to it before the plug is done; nobody does anything else.
        Still = 1,
        /// Additions below [`COUNTER_LIMIT`](super::COUNTER_LIMIT) on either side of zero, by
        /// `limited_add`, of one thread.
        Limited = 2,
    }

    /// Bytes the host can expect in an area, on every possible CPU.
    pub enum AreaContent: u32 {
        /// Nobody has written: zero everywhere (I14).
        Zero = 0,
        /// Every 32-bit word of CPU c's copy equals `seed ^ (c * 0x9e37_79b9)`.
        Pattern = 1,
        /// Anything.
        Any = 2,
    }

    /// Kinds of conserved sums.
    pub enum SumKind: u32 {
        /// 64 bits for each possible CPU, wrapping.
        Word = 0,
        /// 32 bits.
        Half = 1,
        /// 16 bits.
        Quarter = 2,
        /// 8 bits.
        Byte = 3,
        /// A `LazyCounter`: what is named is no per-CPU pointer but the address of its word
        /// ([`LazyView`](percpu_core::view::LazyView)).
        Lazy = 4,
        /// The first number of a `SeqStats` of [`STATS`](super::STATS) on each CPU, with which the
        /// others change (S2).
        Stats = 5,
    }

    /// Why a plug or an unplug failed.
    pub enum PlugError: u32 {
        /// The CPU is not possible.
        NoSuchCpu = 1,
        /// The CPU is already in the state asked for.
        AlreadyThere = 2,
        /// The last online CPU, or the boot CPU, cannot go down.
        Busy = 3,
        /// The CPU never arrived.
        TimedOut = 4,
        /// A step's callback failed and the steps before it were rolled back.
        StepFailed = 5,
        /// There is no memory for the CPU's per-CPU data.
        NoMemory = 6,
    }

    /// Invariants the guest can see broken by itself, by their number in the specification.
    pub enum Invariant: u32 {
        /// Memory handed out is zero on every possible CPU.
        I14 = 14,
        /// A quiescent sum equals the initial amount and all adds.
        K1 = 101,
        /// |local| < batch, and a read is off by what is in the locals at most.
        K2 = 102,
        /// A limited addition tells the truth and passes no limit.
        K4 = 104,
        /// A sum while a CPU goes down counts that CPU.
        K6 = 106,
        /// A comparison with a value is one of the exact value.
        K7 = 107,
        /// A conserved per-CPU sum lost or gained something.
        S1 = 201,
        /// Words that change as one are never seen apart.
        S2 = 202,
        /// Whoever is inside a CPU's protected data is alone there.
        S3 = 203,
        /// No `tryget_live` succeeds once a kill is confirmed.
        P3 = 303,
        /// What somebody looks up is not given back before he is done.
        P7 = 307,
        /// No page goes back before every TLB was made to forget it.
        T1 = 401,
        /// Memory is put behind reserved addresses alone, which have none, and taken away once.
        T2 = 402,
        /// No operation leaves preemption off or interrupts masked.
        G1 = 501,
    }

    /// What a row of a benchmark is to reach.
    pub enum BenchTarget: u32 {
        /// Nothing is asked.
        None = 0,
        /// At most `bound` times the bare instructions.
        TimesBare = 1,
        /// At most `bound` nanoseconds.
        Nanoseconds = 2,
        /// At most one `bound`th of the shared `lock xadd`.
        PartOfShared = 3,
    }

    /// Which rows a benchmark has.
    pub enum BenchGroup: u32 {
        /// Operations on per-CPU data, guards, locks of one CPU.
        Core = 1,
        /// Counters and references.
        Counter = 2,
    }

    /// In what the rows of a benchmark that have one name differ.
    pub enum BenchAxis: u32 {
        /// There is one such row.
        None = 0,
        /// CPUs that do it at the same time.
        AtOnce = 1,
        /// CPUs that are online, of which one does it.
        Online = 2,
    }

    /// Deliberate misbehaviour, for tests of the host.
    pub enum Fault: u32 {
        /// None.
        None = 0,
        /// A Rust panic on a CPU under load.
        Panic = 1,
        /// A triple fault.
        TripleFault = 2,
        /// An endless loop with interrupts masked.
        SpinMasked = 3,
        /// Stray stores over the shared header.
        ScribbleHeader = 4,
        /// A read of an address that is not mapped.
        PageFault = 5,
    }
}

impl Invariant {
    /// Its name in the specification and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::I14 => "I14",
            Self::K1 => "K1",
            Self::K2 => "K2",
            Self::K4 => "K4",
            Self::K6 => "K6",
            Self::K7 => "K7",
            Self::S1 => "S1",
            Self::S2 => "S2",
            Self::S3 => "S3",
            Self::P3 => "P3",
            Self::P7 => "P7",
            Self::T1 => "T1",
            Self::T2 => "T2",
            Self::G1 => "G1",
        }
    }

    /// Its place in [`ALL`](Self::ALL).
    pub const fn index(self) -> usize {
        let mut index = 0;
        while Self::ALL[index] as u32 != self as u32 {
            index += 1;
        }
        index
    }
}

impl SumKind {
    /// Bytes of each CPU's part.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Word | Self::Lazy | Self::Stats => 8,
            Self::Half => 4,
            Self::Quarter => 2,
            Self::Byte => 1,
        }
    }
}

impl Fault {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Panic => "panic",
            Self::TripleFault => "triple-fault",
            Self::SpinMasked => "spin-masked",
            Self::ScribbleHeader => "scribble-header",
            Self::PageFault => "page-fault",
        }
    }
}
