//! A guest's test program: its own tests, the storm of plugs, and seeds, with names, filters and
//! `--list` as test programs have them.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use libtest_mimic::{Arguments, Failed, Trial};
use percpu_guest::abi::{BootMode, Fault};

use crate::error::Error;
use crate::fuzz::{self, Case, FuzzConfig, MachineKind, Shard};
use crate::guest::{Guest, Kind, program};
use crate::host::{EngineChoice, Host, HostInfo, RingChoice};
use crate::image::{GuestTest, Image};
use crate::report;
use crate::run::{self, Length, RunConfig, boot_mode_name};
use crate::vm::Engine;

/// Leaves out all that needs a virtual machine: guests run as threads.
const NO_VM: &str = "PERCPU_NO_VM";
/// Seconds of the storm.
const STORM: u64 = 5;
/// Seeds that are run.
const SEEDS: Range<u64> = 0..200;
/// CPUs of the storm: at boot, and at most.
const CPUS: (u32, u32) = (2, 4);
/// How long to try to make a failure small.
const MINIMISE: Duration = Duration::from_secs(10);

/// What a guest is tested with.
pub struct Suite {
    guest: Guest,
    storm: u64,
    seeds: Range<u64>,
    scenarios: Vec<PathBuf>,
    boot_matters: Option<&'static str>,
    all_engines: bool,
}

/// What the trials share.
struct Shared {
    guest: &'static Guest,
    image: Image,
    /// That for the deterministic machine, built when the first trial asks for it.
    steps: Mutex<Option<Arc<Image>>>,
    /// The host as a guest finds it; under other engines, too, if tests run on all.
    host: HostInfo,
    others: Vec<HostInfo>,
}

/// Tests a guest: its own tests, in the rings there are; its workloads for five seconds while CPUs come
/// and go; 200 seeds on the deterministic machine. The whole `main` of a test with `harness = false`.
pub fn main(guest: Guest) -> ExitCode {
    Suite::of(guest).main()
}

impl Suite {
    /// What [`main`] does, to be changed.
    pub fn of(guest: Guest) -> Self {
        Self {
            guest,
            storm: STORM,
            seeds: SEEDS,
            scenarios: Vec::new(),
            boot_matters: None,
            all_engines: false,
        }
    }

    /// A storm of so many seconds; 0 for none.
    pub fn storm(self, seconds: u64) -> Self {
        Self { storm: seconds, ..self }
    }

    /// These seeds, or none.
    pub fn seeds(self, seeds: Range<u64>) -> Self {
        Self { seeds, ..self }
    }

    /// Also the work, CPUs and plugs of this scenario's file, as they go with the turns of each of the
    /// seeds.
    pub fn scenario(mut self, file: impl Into<PathBuf>) -> Self {
        self.scenarios.push(file.into());
        self
    }

    /// Tests whose names begin so run twice: with CPUs that the host starts, and with CPUs that the
    /// guest starts by INIT and SIPI.
    pub fn boot_matters_to(self, prefix: &'static str) -> Self {
        Self { boot_matters: Some(prefix), ..self }
    }

    /// The guest's tests run as threads of the test's process, too, where there is KVM. Where there is
    /// none all that can does so anyway.
    pub fn on_all_engines(self) -> Self {
        Self { all_engines: true, ..self }
    }

    /// Runs what the command line asks for.
    pub fn main(self) -> ExitCode {
        let arguments = Arguments::from_args();
        let guest = self.guest.clone().set();
        let prepared = guest.image(Kind::Usual).and_then(|image| {
            let no_vm = std::env::var_os(NO_VM).is_some_and(|value| value == "1");
            let host = Host::find(match no_vm {
                true => EngineChoice::Threads,
                false => EngineChoice::Auto,
            })?;
            let others = match host.engine {
                Engine::Kvm if self.all_engines => vec![Host::find(EngineChoice::Threads)?],
                _ => Vec::new(),
            };
            if host.engine == Engine::Threads {
                println!("no virtual machine, guests run as threads of this process: {}", host.why);
            }
            Ok(Arc::new(Shared { guest, image, steps: Mutex::default(), host, others }))
        });
        match prepared {
            Ok(shared) => libtest_mimic::run(&arguments, self.trials(&shared)).exit_code(),
            Err(error) => {
                eprintln!("error: {error}");
                error.status().into()
            }
        }
    }

    fn trials(&self, shared: &Arc<Shared>) -> Vec<Trial> {
        let image = &shared.image;
        let mut trials = Vec::new();
        for host in std::iter::once(&shared.host).chain(&shared.others) {
            for (ring, boot) in ways(image, host.engine) {
                for test in image.tests() {
                    let matters = self.boot_matters.is_some_and(|with| test.name.starts_with(with));
                    if boot == BootMode::Direct || matters {
                        trials.push(trial(shared, test, ring, boot, host));
                    }
                }
            }
        }
        let storm = Duration::from_secs(self.storm);
        if !storm.is_zero() && image.workloads().names().next().is_some() {
            let shared = shared.clone();
            trials.push(Trial::test("storm", move || ended(shared.storm(storm))));
        }
        let seeds = self.seeds.clone();
        if !seeds.is_empty() && !image.workloads().for_seeds().is_empty() {
            let name = format!("seeds::{}..{}", seeds.start, seeds.end);
            for file in &self.scenarios {
                let name = format!("scenario::{}", file.file_stem().unwrap_or_default().display());
                let (shared, seeds, file) = (shared.clone(), seeds.clone(), file.clone());
                let run = move || ended(shared.run_seeds(seeds, Some(&file)));
                trials.push(Trial::test(name, run));
            }
            let shared = shared.clone();
            trials.push(Trial::test(name, move || ended(shared.run_seeds(seeds, None))));
        }
        trials
    }
}

/// The rings in which a guest can run, with the ways in which its CPUs can be started there.
fn ways(image: &Image, engine: Engine) -> Vec<(u8, BootMode)> {
    let rings: &[u8] = if image.header().ring3_only != 0 { &[3] } else { &[3, 0] };
    let boots = [BootMode::Direct, BootMode::Sipi];
    match engine {
        Engine::Kvm => rings.iter().flat_map(|&ring| boots.map(|boot| (ring, boot))).collect(),
        Engine::Threads => vec![(3, BootMode::Direct)],
    }
}

fn trial(
    shared: &Arc<Shared>,
    test: &GuestTest,
    ring: u8,
    boot: BootMode,
    host: &HostInfo,
) -> Trial {
    let first = match host.engine {
        Engine::Kvm => format!("ring{ring}"),
        Engine::Threads => "threads".into(),
    };
    let name = format!("{first}::{}::{}", boot_mode_name(boot), test.name);
    let ignored = test.ignored;
    let (shared, test, host) = (shared.clone(), test.clone(), host.clone());
    let run = move || ended(super::run(&shared.image, &test, ring, boot, &host));
    Trial::test(name, run).with_ignored_flag(ignored)
}

/// A path as it is from here, if it lies below: easier to read, and to type.
fn relative(path: PathBuf) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).map(Into::into).unwrap_or(path)
}

/// What libtest-mimic is told.
fn ended(result: Result<Result<(), String>, Error>) -> Result<(), Failed> {
    Ok(result??)
}

impl Shared {
    fn steps(&self) -> Result<Arc<Image>, Error> {
        // Whoever comes second waits for the build of the first; one that panicked has left nothing.
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = &*steps {
            return Ok(image.clone());
        }
        Ok(steps.insert(Arc::new(self.guest.image(Kind::Steps)?)).clone())
    }

    fn ring(&self, image: &Image) -> u8 {
        match image.header().ring3_only {
            0 => self.host.choose_ring(RingChoice::Auto).0,
            _ => 3,
        }
    }

    /// All workloads, while CPUs come and go.
    fn storm(&self, time: Duration) -> Result<Result<(), String>, Error> {
        let ring = self.ring(&self.image);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seed = now.as_nanos() as u64 & 0xffff_ffff;
        let (cpus, max_cpus) = CPUS;
        let seconds = time.as_secs();
        let config = RunConfig {
            cpus,
            max_cpus,
            length: Length::Time(time),
            work: None,
            workloads: self.image.workloads().names().map(str::to_owned).collect(),
            boot: BootMode::Direct,
            ring,
            seed,
            fault: Fault::None,
            live: false,
            replay: format!(
                "{} run --cpus {cpus} --max-cpus {max_cpus} --seconds {seconds} --ring {ring} \
                 --seed {seed:#x}",
                program()
            ),
            process_start: Instant::now(),
        };
        let report = run::run(&self.image, &config, &self.host, &AtomicBool::new(false))?;
        let mut text = Vec::new();
        // Writing to memory does not fail.
        let _ = report::write_table(&mut text, &report, false);
        let held = report.verdict == report::Verdict::Held;
        Ok(if held { Ok(()) } else { Err(String::from_utf8_lossy(&text).into_owned()) })
    }

    /// Seeds, one CPU at a time: their own scenarios, or their turns for that of a file.
    fn run_seeds(
        &self,
        seeds: Range<u64>,
        file: Option<&Path>,
    ) -> Result<Result<(), String>, Error> {
        let image = &*self.steps()?;
        let read = |file| Case::read(file, image.workloads());
        let scenario = file.map(read).transpose()?.map(|case| case.scenario);
        let directory = percpu_guest_build::target_dir().unwrap_or_else(|| PathBuf::from("target"));
        let config = FuzzConfig {
            seeds,
            shard: Shard::default(),
            scenario,
            change: false,
            corpus: None,
            time: None,
            jobs: std::thread::available_parallelism().map_or(1, usize::from),
            verify: false,
            most_failures: 1,
            failures: relative(directory.join("fuzz/failures")),
            minimise: MINIMISE,
            ring: self.ring(image),
            machine: MachineKind::Deterministic,
            host: self.host.clone(),
        };
        let fuzz::Ended { report, error } = fuzz::run(image, &config, &AtomicBool::new(false))?;
        let mut text = Vec::new();
        let _ = fuzz::write_report(&mut text, &report);
        match error {
            _ if !report.failures.is_empty() => {
                Ok(Err(String::from_utf8_lossy(&text).into_owned()))
            }
            Some(error) => Err(error),
            None => Ok(Ok(())),
        }
    }
}
