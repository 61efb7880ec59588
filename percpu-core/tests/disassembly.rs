//! What operations compile to, in a kernel: one instruction each, with a `gs` prefix and without a
//! `lock`.
//!
//! `fixtures/operations.rs` is compiled the way a kernel is (optimised, without the feature `host`,
//! at a fixed address), and the assembly of its functions is read.
#![cfg(not(any(miri, loom, shuttle)))]

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::OnceLock;

    const NUMBERS: [&str; 10] =
        ["u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "usize", "isize"];
    const OTHERS: [&str; 2] = ["bool", "Pointer"];

    /// The instructions of a function, in order, without labels and directives.
    type Function = Vec<String>;

    /// The fixture's functions, by name.
    fn functions() -> &'static BTreeMap<String, Function> {
        static FUNCTIONS: OnceLock<BTreeMap<String, Function>> = OnceLock::new();
        FUNCTIONS.get_or_init(|| parse(&assembly()))
    }

    fn function(name: &str) -> &'static Function {
        functions().get(name).unwrap_or_else(|| panic!("the fixture has no function {name}"))
    }

    /// Compiles the crate and the fixture. Needs no cargo and no other crate: as a kernel uses it,
    /// percpu-core has no dependency.
    fn assembly() -> String {
        let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("disassembly");
        std::fs::create_dir_all(&out).expect("scratch space");
        let percpu_core = out.join("libpercpu_core.rlib");
        let assembly = out.join("operations.s");
        let version = env!("CARGO_PKG_VERSION");
        rustc(&out, crate_root.join("src/lib.rs"), "percpu_core")
            .env("CARGO_PKG_VERSION", version)
            .arg("--emit=link")
            .run();
        rustc(&out, crate_root.join("tests/fixtures/operations.rs"), "operations")
            .arg("--extern")
            .arg(format!("percpu_core={}", percpu_core.display()))
            .args(["--emit=asm", "-Cllvm-args=-x86-asm-syntax=intel"])
            .run();
        std::fs::read_to_string(assembly).expect("rustc has written it")
    }

    fn rustc(out: &Path, source: PathBuf, name: &str) -> Command {
        let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()));
        // In the checkout, so that rustup takes the tool chain that this test was built with.
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        command.arg(source).args(["--crate-name", name, "--crate-type=lib", "--edition=2024"]);
        command.args(["-Copt-level=3", "-Cpanic=abort"]);
        command.args(["-Crelocation-model=static", "--cap-lints=allow"]).arg("--out-dir").arg(out);
        command
    }

    trait Run {
        fn run(&mut self);
    }

    impl Run for Command {
        fn run(&mut self) {
            let output = self.output().expect("rustc starts");
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{self:?}:\n{text}");
        }
    }

    /// Functions of a text in LLVM's assembly language. Of functions that are alike there is one,
    /// with the others as its aliases.
    fn parse(assembly: &str) -> BTreeMap<String, Function> {
        let mut functions = BTreeMap::<String, Function>::new();
        let mut aliases = Vec::new();
        let mut current = None;
        for line in assembly.lines() {
            let line = line.split('#').next().unwrap_or("").trim_end();
            match line.strip_suffix(':') {
                Some(label) if label.starts_with(".Lfunc_end") => current = None,
                Some(label) if label.starts_with('.') => {}
                Some(label) => {
                    current = Some(functions.entry(label.to_owned()).or_default());
                }
                None => {
                    let instruction = line.trim_start();
                    aliases.extend(instruction.split_once(" = "));
                    if let Some(function) = &mut current
                        && !instruction.is_empty()
                        && !instruction.starts_with('.')
                    {
                        function.push(instruction.split_whitespace().collect::<Vec<_>>().join(" "));
                    }
                }
            }
        }
        for (alias, name) in aliases {
            if let Some(function) = functions.get(name).cloned() {
                functions.insert(alias.to_owned(), function);
            }
        }
        functions
    }

    fn mnemonic(instruction: &str) -> &str {
        instruction.split(' ').next().unwrap_or("")
    }

    /// Whether it reads or writes memory. Those that do so without saying it in brackets are in no
    /// function that is as short as these should be.
    fn touches_memory(instruction: &str) -> bool {
        let implicit = ["push", "pop", "call", "movs", "stos", "lods", "rep", "leave"];
        (instruction.contains('[') && mnemonic(instruction) != "lea")
            || implicit
                .iter()
                .any(|name| mnemonic(instruction).starts_with(name) && !instruction.contains('['))
    }

    fn has_gs(instruction: &str) -> bool {
        instruction.contains("gs:")
    }

    /// What is wrong with a function that is to touch memory `accesses` times: each time this CPU's
    /// copy, and without a lock.
    fn fault(function: &[String], accesses: usize) -> Option<String> {
        let with_gs = function.iter().filter(|i| has_gs(i)).count();
        if with_gs != accesses {
            return Some(format!("{with_gs} instructions with a gs prefix, not {accesses}"));
        }
        function.iter().find_map(|instruction| {
            if instruction.starts_with("lock") {
                Some(format!("a lock prefix: {instruction}"))
            } else if mnemonic(instruction) == "xchg" && instruction.contains('[') {
                Some(format!("an exchange with memory, which locks unasked: {instruction}"))
            } else if mnemonic(instruction) == "call" {
                Some(format!("a call: {instruction}"))
            } else if touches_memory(instruction) && !has_gs(instruction) {
                Some(format!("memory that is not this CPU's: {instruction}"))
            } else {
                None
            }
        })
    }

    #[track_caller]
    fn check(name: &str, accesses: usize) {
        let function = function(name);
        if let Some(fault) = fault(function, accesses) {
            panic!("{name} has {fault}\n{}", function.join("\n"));
        }
    }

    /// The instructions up to the return when no jump is taken, without the return.
    fn straight_on(function: &[String]) -> &[String] {
        let end = function.iter().position(|instruction| mnemonic(instruction) == "ret");
        &function[..end.expect("it returns")]
    }

    #[test]
    fn each_operation_is_one_instruction_on_this_cpus_copy() {
        for operation in [
            "add",
            "sub",
            "inc",
            "dec",
            "and",
            "or",
            "add_return",
            "sub_return",
            "inc_return",
            "dec_return",
            "pinned_add",
            "asserted_add",
            "unguarded_add",
            "pointer_add",
        ] {
            NUMBERS.iter().for_each(|ty| check(&format!("{operation}_{ty}"), 1));
        }
        for operation in
            ["read", "write", "cmpxchg", "try_cmpxchg", "pointer_read", "pointer_write"]
        {
            NUMBERS.iter().chain(&OTHERS).for_each(|ty| check(&format!("{operation}_{ty}"), 1));
        }
    }

    #[test]
    fn two_words_are_compared_and_exchanged_and_read_by_one_instruction() {
        for name in ["cmpxchg_pair", "read_pair"] {
            check(name, 1);
            let function = function(name);
            assert!(function.iter().any(|i| mnemonic(i) == "cmpxchg16b"), "{function:#?}");
        }
    }

    /// The instruction of that name has a lock that cannot be left out.
    #[test]
    fn exchange_is_a_read_and_a_compare_and_exchange() {
        for ty in NUMBERS.iter().chain(&OTHERS) {
            let name = format!("xchg_{ty}");
            check(&name, 2);
            let function = function(&name);
            assert!(function.iter().any(|i| mnemonic(i) == "cmpxchg"), "{function:#?}");
        }
    }

    #[test]
    fn guard_is_one_instruction_to_take_and_two_to_drop() {
        let take = straight_on(function("guard_take"));
        assert_eq!(take.len(), 1, "{take:#?}");
        assert!(take[0].starts_with("inc qword ptr gs:["), "{take:#?}");
        let drop = straight_on(function("guard_drop"));
        assert_eq!(drop.len(), 2, "{drop:#?}");
        assert!(drop[0].starts_with("dec qword ptr gs:["), "{drop:#?}");
        assert!(mnemonic(&drop[1]) == "je", "{drop:#?}");
    }

    #[test]
    fn counter_adds_in_two_accesses_to_this_cpus_part() {
        let fast = straight_on(function("counter_add"));
        let accesses = fast.iter().filter(|i| has_gs(i)).count();
        assert!((1..=2).contains(&accesses), "{accesses} accesses:\n{fast:#?}");
        assert!(!fast.iter().any(|i| i.starts_with("lock") || mnemonic(i) == "call"), "{fast:#?}");
    }

    /// What the checks above would say of code that is not as it should be.
    #[test]
    fn faults_are_seen() {
        let fault_of = |assembly: &str, accesses| {
            let functions = parse(&format!("f:\n{assembly}\n.Lfunc_end0:\n\tcall\tother\n"));
            fault(&functions["f"], accesses)
        };
        let add = "\t#APP\n\tadd\tqword ptr gs:[rip + X], rdi\n\t#NO_APP\n\tret";
        assert_eq!(fault_of(add, 1), None);
        assert_eq!(fault_of("\tmov\teax, offset X\n\tinc\tbyte ptr gs:[rax]\n\tret", 1), None);
        for (assembly, expected) in [
            ("\tlock\t\tadd\tqword ptr gs:[rax], rdi", "a lock prefix"),
            ("\txchg\tqword ptr gs:[rax], rdi", "an exchange with memory"),
            ("\tmov\trax, gs:[X]\n\tadd\tqword ptr gs:[rax], rdi", "2 instructions"),
            ("\tmov\trax, qword ptr [rip + OFFSET]\n\tadd\tqword ptr gs:[rax], rdi", "memory that"),
            ("\tpush\trbx\n\tadd\tqword ptr gs:[rax], rdi", "memory that"),
            ("\tadd\tqword ptr gs:[rax], rdi\n\tcall\tcheck", "a call"),
            ("\tadd\tqword ptr [rax], rdi", "0 instructions"),
        ] {
            let fault = fault_of(assembly, 1).unwrap_or_default();
            assert!(fault.starts_with(expected), "{assembly}: {fault:?}");
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[test]
fn disassembly_is_left_out() {
    println!("left out: this host's assembly is not that of the kernels for x86-64");
}
