//! What `doctor` prints: what this host has, what will be used and why, and how to mend what is missing.

use std::fmt;

use super::advice::{self, Advice};
use super::place::{Inside, Place};
use super::{Host, HostInfo, RingChoice};
use crate::error::{Error, Status};
use crate::report::Paint;

/// Memory below which a guest of the usual size may not fit.
const LITTLE_MEMORY_KIB: u64 = 512 << 10;

/// How good a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Ok,
    Warn,
    Missing,
}

/// A line of the report.
#[derive(Debug)]
struct Finding {
    mark: Mark,
    name: &'static str,
    text: String,
    mend: Vec<String>,
}

/// What was found out.
#[derive(Debug)]
pub struct Doctor {
    findings: Vec<Finding>,
    status: Status,
    colours: bool,
}

impl Doctor {
    /// Examines this host. What goes wrong is part of the result.
    pub fn examine() -> Self {
        Self::of(&Place::here(), &Host::probe())
    }

    /// With colours, or not.
    pub fn coloured(self, colours: bool) -> Self {
        Self { colours, ..self }
    }

    /// The status with which `doctor` ends.
    pub fn status(&self) -> Status {
        self.status
    }

    fn of(place: &Place, host: &Result<HostInfo, Error>) -> Self {
        let mut doctor = Self { findings: Vec::new(), status: Status::Held, colours: false };
        doctor.look_around(place);
        match host {
            Ok(host) => doctor.add_kvm(place, host),
            Err(error) => {
                let Advice { what, mend } = advice::of(error, place);
                doctor.add(Mark::Missing, "/dev/kvm", what, mend);
                let way = "cargo xtask run --engine threads: CPUs as threads of this process, which \
                           needs no KVM, and cargo xtask test --no-vm";
                doctor.add(Mark::Warn, "without KVM", way.into(), Vec::new());
                doctor.status = error.status();
            }
        }
        doctor
    }

    fn add(&mut self, mark: Mark, name: &'static str, text: String, mend: Vec<String>) {
        self.findings.push(Finding { mark, name, text, mend });
    }

    fn ok(&mut self, name: &'static str, text: impl Into<String>) {
        self.add(Mark::Ok, name, text.into(), Vec::new());
    }

    fn look_around(&mut self, place: &Place) {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        self.ok("CPU", format!("{}, {cores} for this process", place.cpu()));
        match place.memory_kib() {
            Some(kib) if kib < LITTLE_MEMORY_KIB => {
                let text = format!("{} MiB are free: a guest takes a few hundred", kib >> 10);
                self.add(Mark::Warn, "memory", text, vec!["lower --max-cpus".into()]);
            }
            Some(kib) => self.ok("memory", format!("{} MiB are free", kib >> 10)),
            None => self.ok("memory", "unknown"),
        }
        let mut around: Vec<_> = place
            .inside()
            .into_iter()
            .map(|inside| match inside {
                Inside::Container => "a container".to_owned(),
                Inside::Kubernetes => "a pod of Kubernetes".to_owned(),
                Inside::Wsl(version) => format!("WSL {version}"),
                Inside::GitHub => "a runner of GitHub's".to_owned(),
            })
            .collect();
        if place.is_virtual() {
            around.push(format!("a virtual machine {}", place.vendor()).trim().to_owned());
        }
        if !around.is_empty() {
            self.ok("inside of", around.join(", "));
        }
        let modules = place.modules();
        if !modules.is_empty() {
            self.ok("KVM module", modules.join(", "));
        }
    }

    fn add_kvm(&mut self, place: &Place, host: &HostInfo) {
        let HostInfo { api_version, recommended_vcpus, max_vcpus, .. } = host;
        self.ok(
            "/dev/kvm",
            format!(
                "API {api_version}, {recommended_vcpus} vCPUs recommended, {max_vcpus} at most; \
                 looked at in {:.1} ms",
                host.took.as_secs_f64() * 1e3
            ),
        );
        let lacks: Vec<_> =
            host.capabilities.iter().filter(|(_, there)| !there).map(|(name, _)| *name).collect();
        if lacks.is_empty() {
            self.ok("capabilities", format!("all {} that are needed", host.capabilities.len()));
        } else {
            let mend = if place.is_virtual() {
                "a newer kernel here or on the host of this virtual machine"
            } else {
                "a newer kernel"
            };
            let text = format!("{} of this KVM", lacks.join(", "));
            self.add(Mark::Missing, "capabilities", text, vec![mend.into()]);
            self.status = Status::Host;
        }
        match host.fsgsbase {
            true => self.ok("FSGSBASE", "the guest sets its own GS base"),
            false => {
                let text = "not there, and ring 3 needs it".into();
                let mend = vec!["a CPU from Ivy Bridge or Zen on, and Linux 5.9 or later".into()];
                self.add(Mark::Warn, "FSGSBASE", text, mend);
            }
        }
        let tsc = host.tsc_khz.map_or("unknown".into(), |khz| format!("{} MHz", khz / 1000));
        self.ok("TSC", tsc);
        let (ring, why) = host.choose_ring(RingChoice::Auto);
        let mark = if ring == 0 && host.emulates_ring0() { Mark::Warn } else { Mark::Ok };
        self.add(mark, "ring for the guest", format!("{ring}: {why}"), Vec::new());
    }
}

impl fmt::Display for Doctor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paint = Paint(self.colours);
        for Finding { mark, name, text, mend } in &self.findings {
            let mark = match mark {
                Mark::Ok => paint.good("ok     "),
                Mark::Warn => paint.bold("warn   "),
                Mark::Missing => paint.bad("missing"),
            };
            writeln!(f, "{mark}  {name:<20}{text}")?;
            mend.iter().try_for_each(|line| writeln!(f, "{:29}{line}", ""))?;
        }
        match self.status {
            Status::Held => writeln!(f, "\nThis host can run the percpu guest."),
            _ => writeln!(f, "\nThis host cannot run the percpu guest yet."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::host;
    use super::*;

    fn place() -> Place {
        Place::made_up("/nowhere".as_ref(), |_| None)
    }

    #[test]
    fn a_host_that_can_says_so_line_by_line() {
        let doctor = Doctor::of(&place(), &Ok(host(0.7, true)));
        let text = doctor.to_string();
        assert!(text.contains("ok       /dev/kvm            API 12"), "{text}");
        assert!(text.ends_with("This host can run the percpu guest.\n"), "{text}");
        assert!(!text.contains("missing") && !text.contains('\u{1b}'), "{text}");
        assert_eq!(doctor.status(), Status::Held);
        assert!(doctor.coloured(true).to_string().contains("\u{1b}[1;32mok"));
    }

    #[test]
    fn what_is_missing_comes_with_what_to_do_and_the_way_without() {
        let error = Error::KvmPermission { group: "kvm".into() };
        let doctor = Doctor::of(&place(), &Err(error));
        let text = doctor.to_string();
        assert!(text.contains("missing  /dev/kvm"), "{text}");
        let mend = format!("{:29}sudo usermod -aG kvm $USER", "");
        assert!(text.lines().any(|line| line.starts_with(&mend)), "{text}");
        assert!(text.contains("--engine threads"), "{text}");
        assert_eq!(doctor.status(), Status::Host);
    }

    #[test]
    fn a_capability_that_is_missing_makes_it_unusable() {
        let mut poor = host(1.0, false);
        poor.capabilities.push(("KVM_CAP_SIGNAL_MSI", false));
        let doctor = Doctor::of(&place(), &Ok(poor));
        let text = doctor.to_string();
        assert!(text.contains("missing  capabilities        KVM_CAP_SIGNAL_MSI"), "{text}");
        assert!(text.contains("warn     FSGSBASE"), "{text}");
        assert_eq!(doctor.status(), Status::Host);
    }
}
