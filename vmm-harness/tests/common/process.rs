//! The program as a process: started, watched line by line, interrupted, and how it ended.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common;

/// Far more than any of these runs takes, on a slow and busy machine too.
const LIMIT: Duration = Duration::from_secs(120);

/// A place for one test's file.
pub fn scratch(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("{}-{name}", module_path!().split("::").next().unwrap_or_default()));
    // Usually there is none; that it cannot be made again would show where it is written.
    let _ = std::fs::remove_file(&path);
    path
}

/// Leave to run a guest: one test at a time, so that none sees the others as a hang.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same for a virtual machine. `None`, with a line that says so, where there are to be none.
#[allow(dead_code, reason = "not every test program wants one")]
pub fn vm(test: &str) -> Option<MutexGuard<'static, ()>> {
    if common::no_vm() {
        let line = format!("{test}: left out, PERCPU_NO_VM=1\n");
        // Past the capture of a test's output: this is to be seen.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
        return None;
    }
    Some(alone())
}

pub fn harness() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm-harness"));
    command.env_remove("PERCPU_GUEST_IMAGE").stdin(Stdio::null());
    command.env("PERCPU_ENGINE", common::engines()[0]);
    command
}

/// A process under way, in a process group of its own; killed if the test fails before its end.
pub struct Running {
    child: Child,
    deadline: Instant,
    stdout: Option<thread::JoinHandle<String>>,
    /// Lines as they come, and at the end the channel's own.
    stderr: mpsc::Receiver<String>,
    stderr_so_far: String,
}

/// What became of a process.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("vmm-harness starts");
        let mut stdout = child.stdout.take().expect("piped");
        let stdout = Some(thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stdout.read_to_end(&mut text);
            String::from_utf8(text).expect("output in UTF-8")
        }));
        let (lines, stderr) = mpsc::channel();
        let pipe = BufReader::new(child.stderr.take().expect("piped"));
        thread::spawn(move || {
            for line in pipe.lines().map_while(Result::ok) {
                // The test may have ended.
                let _ = lines.send(line);
            }
        });
        Self {
            child,
            deadline: Instant::now() + LIMIT,
            stdout,
            stderr,
            stderr_so_far: String::new(),
        }
    }

    /// The next line on stderr; `None` when it is closed.
    pub fn line(&mut self) -> Option<&str> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.stderr.recv_timeout(left) {
            Ok(line) => {
                let before = self.stderr_so_far.len();
                self.stderr_so_far += &line;
                self.stderr_so_far.push('\n');
                Some(&self.stderr_so_far[before..])
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                panic!("not over after {LIMIT:?}, stderr:\n{}", self.stderr_so_far)
            }
        }
    }

    pub fn interrupt(&self) {
        // SAFETY: a signal to a process of our own that was not waited for, so the number is its.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, libc::SIGINT) }, 0);
    }

    /// Waits for the end, and for there to be no process left of the group.
    pub fn end(mut self) -> Ended {
        while self.line().is_some() {}
        let status = self.child.wait().expect("it was started");
        let stdout = self.stdout.take().expect("taken here only").join().expect("UTF-8");
        // SAFETY: signal 0 only asks whether there is such a process group.
        let left = unsafe { libc::kill(-(self.child.id() as i32), 0) };
        assert_eq!(left, -1, "there is a process left");
        Ended { status, stdout, stderr: std::mem::take(&mut self.stderr_so_far) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both do nothing to a process that was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn ended(command: &mut Command) -> Ended {
    Running::start(command).end()
}

impl Ended {
    #[track_caller]
    pub fn with_status(self, code: i32) -> Self {
        let Self { status, stdout, stderr } = &self;
        assert_eq!(status.code(), Some(code), "{status}\nstdout:\n{stdout}\nstderr:\n{stderr}");
        assert!(!stderr.contains("panicked at"), "the program panicked:\n{stderr}");
        self
    }

    /// The program refused: one sentence that names `what`, status 2, nothing on stdout.
    #[track_caller]
    pub fn refused(self, what: &str) {
        let Self { stdout, stderr, .. } = self.with_status(2);
        assert_eq!(stdout, "");
        let (sentence, rest) = stderr.split_once('\n').unwrap_or((&stderr, ""));
        assert!(sentence.starts_with("error: "), "{stderr}");
        assert!(sentence.contains(what), "{what} is not in: {stderr}");
        // What the parser of arguments adds to its own sentences.
        let rest = rest.trim();
        assert!(rest.is_empty() || rest == "For more information, try '--help'.", "{stderr}");
    }
}

pub fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("a report was written");
    serde_json::from_str(&text).expect("the report is JSON")
}
