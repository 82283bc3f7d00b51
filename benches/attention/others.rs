//! How much of the machine other processes use while something is measured.

use std::fs;
use std::time::Instant;

/// Ticks of all cores so far, where Linux tells: in use by anybody or withheld by the host, and
/// used by this process.
fn ticks() -> Option<(f64, f64)> {
    let all = fs::read_to_string("/proc/stat").ok()?;
    let fields = all.lines().next()?.split_whitespace().skip(1);
    let fields: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _wait, irq, softirq, steal] = *fields.first_chunk::<8>()?;
    let own = fs::read_to_string("/proc/self/stat").ok()?;
    // After the name, which may hold anything, in brackets: fields 14 and 15 of the whole.
    let own: Vec<&str> = own.rsplit_once(')')?.1.split_whitespace().collect();
    let own = own.get(11)?.parse::<f64>().ok()? + own.get(12)?.parse::<f64>().ok()?;
    Some((user + nice + system + irq + softirq + steal, own))
}

/// A stretch of time.
pub(crate) struct Others {
    start: Instant,
    before: Option<(f64, f64)>,
}

impl Others {
    pub(crate) fn watch() -> Self {
        Self { start: Instant::now(), before: ticks() }
    }

    /// Cores that others have used since, on average; 0 where that is unknown.
    pub(crate) fn cores(&self) -> f64 {
        let (Some((all, own)), Some((all_now, own_now))) = (self.before, ticks()) else {
            return 0.0;
        };
        // A tick is 10 ms to programs, whatever the kernel's own.
        let used = ((all_now - all) - (own_now - own)) / 100.0;
        (used / self.start.elapsed().as_secs_f64()).max(0.0)
    }
}
