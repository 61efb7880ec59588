//! The attributes by which a guest declares its tests and workloads: percpu-guest's `test` and
//! `workload`, where it is said what they are for.
//!
//! Each leaves its function as it is and puts an entry beside it, in a section of the image that the
//! host, and for workloads the kernel, reads.

mod arguments;

use proc_macro::{TokenStream, TokenTree};

use arguments::Arguments;

/// Declares a guest test, a function without arguments: it passes unless it panics.
///
/// Each test has a fresh machine to itself and runs on a thread that any CPU may take.
///
/// | argument | what | else |
/// |---|---|---|
/// | `cpus = N` | CPUs that are online when it starts | 2 |
/// | `possible = M` | CPUs that can be brought up in all | as many as `cpus` |
/// | `ignore` | it runs only when asked for by `--ignored` | |
///
/// Its name in reports is its path, without the crate and a module `tests` at its root.
#[proc_macro_attribute]
pub fn test(arguments: TokenStream, item: TokenStream) -> TokenStream {
    expand(arguments, item, |arguments, name| {
        let cpus = arguments.number("cpus")?.unwrap_or(2);
        let possible = arguments.number("possible")?.unwrap_or(cpus);
        let ignore = u64::from(arguments.flag("ignore")?);
        if cpus == 0 || cpus > possible || possible > MOST_CPUS {
            return Err(format!("`cpus` is 1 to `possible`, and that at most {MOST_CPUS}"));
        }
        Ok(format!(
            "const _: () = {{
                const NAME: &str = ::percpu_guest::kernel::testing::name(
                    concat!(module_path!(), \"::\", stringify!({name}))
                );
                #[used]
                // SAFETY: the section holds entries of this type only, which only this attribute makes.
                #[unsafe(link_section = \"guest_tests\")]
                static ENTRY: ::percpu_guest::kernel::testing::Entry =
                    ::percpu_guest::kernel::testing::Entry {{
                        name: NAME.as_ptr(),
                        name_len: NAME.len(),
                        function: {name},
                        cpus: {cpus} | {possible} << 16 | {ignore} << 32,
                    }};
            }};"
        ))
    })
}

/// Declares a workload: an operation that threads on all CPUs do again and again while CPUs come and
/// go, `fn(&mut Worker)`; or, where a thread has a state of its own, the whole life of one,
/// `fn(Worker)`, which calls `Worker::boundary` after each operation and ends when that says so.
///
/// | argument | what | else |
/// |---|---|---|
/// | `name = "..."` | its name on the command line and in scenarios | the function's |
/// | `init = f` | called once, before the first thread starts | |
/// | `interrupt = f` | called in each timer interrupt, on any CPU | |
/// | `cpu_up = f` | called by each CPU that comes up, interrupts masked, before it takes threads | |
/// | `seeds = false` | scenarios made out of seeds leave it out | they may have it |
#[proc_macro_attribute]
pub fn workload(arguments: TokenStream, item: TokenStream) -> TokenStream {
    expand(arguments, item, |arguments, function| {
        let name = arguments.text("name")?.unwrap_or_else(|| format!("\"{function}\""));
        let nothing = || "::percpu_guest::kernel::workload::nothing".to_owned();
        let init = arguments.path("init")?.unwrap_or_else(nothing);
        let interrupt = arguments.path("interrupt")?.unwrap_or_else(nothing);
        let cpu_up = arguments.path("cpu_up")?.unwrap_or_else(nothing);
        let flags = u64::from(!arguments.truth("seeds")?.unwrap_or(true));
        Ok(format!(
            "const _: () = {{
                const NAME: &str = {name};
                fn __life(worker: ::percpu_guest::kernel::workload::Worker) {{
                    ::percpu_guest::kernel::workload::Body::run({function}, worker);
                }}
                #[used]
                // SAFETY: the section holds entries of this type only, which only this attribute makes.
                #[unsafe(link_section = \"guest_workloads\")]
                static ENTRY: ::percpu_guest::kernel::workload::Entry =
                    ::percpu_guest::kernel::workload::Entry {{
                        name: NAME.as_ptr(),
                        name_len: NAME.len(),
                        init: {init},
                        run: __life,
                        interrupt: {interrupt},
                        cpu_up: {cpu_up},
                        flags: {flags},
                    }};
            }};"
        ))
    })
}

/// The most CPUs that a guest can have.
const MOST_CPUS: u64 = 64;

/// The item, and after it what `entry` makes of the arguments and of the function's name.
fn expand(
    arguments: TokenStream,
    item: TokenStream,
    entry: impl FnOnce(&mut Arguments, &str) -> Result<String, String>,
) -> TokenStream {
    let entry = function_name(&item).and_then(|name| {
        let mut arguments = Arguments::parse(arguments)?;
        let entry = entry(&mut arguments, &name)?;
        arguments.none_left()?;
        Ok(entry)
    });
    let text = entry.unwrap_or_else(|why| format!("compile_error!({why:?});"));
    let mut expanded = item;
    expanded.extend(text.parse::<TokenStream>().expect("an entry is Rust"));
    expanded
}

/// The name of the function that `item` is.
fn function_name(item: &TokenStream) -> Result<String, String> {
    let mut tokens = item.clone().into_iter();
    while let Some(token) = tokens.next() {
        if let TokenTree::Ident(word) = token
            && word.to_string() == "fn"
            && let Some(TokenTree::Ident(name)) = tokens.next()
        {
            return Ok(name.to_string());
        }
    }
    Err("this attribute belongs before a function".into())
}
