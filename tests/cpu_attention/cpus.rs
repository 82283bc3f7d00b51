//! The processors under test: every instruction set this machine has, by 1, 2, 3 and 5 threads.

use std::sync::LazyLock;

use inflight::device::cpu::{Cpu, CpuConfig, Isa};

pub(crate) const THREADS: [usize; 4] = [1, 2, 3, 5];

pub(crate) fn cpu(isa: Isa, threads: usize) -> Cpu {
    let config = CpuConfig { threads: Some(threads), isa: Some(isa), ..CpuConfig::default() };
    Cpu::new(&config).expect("it is available")
}

/// Those this machine has.
pub(crate) fn isas() -> &'static [Isa] {
    static ISAS: LazyLock<Vec<Isa>> = LazyLock::new(|| {
        let (have, lack): (Vec<_>, Vec<_>) = Isa::ALL.into_iter().partition(|i| i.is_available());
        lack.iter().for_each(|isa| println!("skipped: this processor has no {isa}"));
        have
    });
    &ISAS
}

/// One an instruction set and number of threads.
pub(crate) fn all() -> &'static [Cpu] {
    static CPUS: LazyLock<Vec<Cpu>> = LazyLock::new(|| {
        let pairs = isas().iter().flat_map(|&isa| THREADS.map(|threads| (isa, threads)));
        pairs.map(|(isa, threads)| cpu(isa, threads)).collect()
    });
    &CPUS
}

/// One an instruction set; turn by turn another number of threads.
pub(crate) fn each(turn: usize) -> impl Iterator<Item = &'static Cpu> {
    let n = THREADS.len();
    (0..isas().len()).map(move |isa| &all()[isa * n + (turn + isa) % n])
}
