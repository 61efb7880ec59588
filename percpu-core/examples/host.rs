//! Threads as CPUs: a per-CPU static, a counter, and a CPU that goes down in between.
//!
//! `cargo run -p percpu-core --example host`

use percpu_core::{counter::PercpuCounter, cpu, host, hotplug, percpu};

percpu! {
    /// Packets that each CPU has seen.
    static PACKETS: PerCpu<u64> = 0;
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    host::boot(4)?;
    let bytes = PercpuCounter::new(0)?;
    let receive = |_cpu| (0..1000).for_each(|size| (PACKETS.inc(), bytes.add(size)).0);

    host::on_each_cpu(receive);
    let last = cpu::online().iter().last().ok_or("a CPU is up")?;
    hotplug::cpu_down(last)?;
    host::on_each_cpu(receive);

    let packets: Vec<u64> = cpu::possible().iter().map(|cpu| PACKETS.read_on(cpu)).collect();
    println!("packets on each CPU: {packets:?}; CPU {last} is down");
    println!("bytes: about {}, exactly {}", bytes.read(), bytes.sum());
    Ok(())
}
