//! Threads as CPUs: per-CPU statics, a counter, and a CPU that goes down in between.
//!
//! `cargo run -p percpu-core --example host`

use percpu_core::counter::PercpuCounter;
use percpu_core::cpu::{self, CpuId};
use percpu_core::{host, hotplug, percpu};

percpu! {
    /// Packets that each CPU has seen.
    static PACKETS: PerCpu<u64> = 0;
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    host::boot(4)?;
    let bytes = PercpuCounter::new(0)?;

    let work = |cpu: CpuId| {
        for size in 0..1000 + 10 * cpu.index() as i64 {
            PACKETS.inc();
            bytes.add(size);
        }
    };
    host::on_each_cpu(work);

    let last = CpuId::new(3).ok_or("there are four CPUs")?;
    hotplug::cpu_down(last)?;
    println!("CPU {last} is down; what it counted is not lost:");
    host::on_each_cpu(work);
    hotplug::cpu_up(last)?;

    for cpu in cpu::possible().iter() {
        println!("  CPU {cpu}: {} packets", PACKETS.read_on(cpu));
    }
    println!("  bytes: about {}, exactly {}", bytes.read(), bytes.sum());
    Ok(())
}
