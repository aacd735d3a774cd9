//! What a server spends, as the kernel counts it: processor time of each of its threads, and memory.

use std::collections::BTreeMap;

/// One look at a process.
#[derive(Clone, Debug, Default)]
pub struct Spending {
    /// Nanoseconds on a processor by thread name, numbers at its end left off.
    pub cpu_ns: BTreeMap<String, u64>,
    pub resident_bytes: u64,
}

impl Spending {
    /// Looks at a process.
    ///
    /// # Errors
    ///
    /// When there is no such process.
    pub fn of(pid: u32) -> Result<Spending, String> {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).map_err(|e| format!("process {pid}: {e}"))?;
        let mut spending = Spending::default();
        for task in tasks.flatten() {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let name = read("comm").trim().trim_end_matches(|c: char| c.is_ascii_digit() || c == '-').to_owned();
            let run_ns: u64 = read("schedstat").split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            *spending.cpu_ns.entry(name).or_default() += run_ns;
        }
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let kib: u64 = resident.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0);
        spending.resident_bytes = kib * 1024;
        Ok(spending)
    }

    /// What was spent since `before`, by thread, nanoseconds.
    pub fn since(&self, before: &Spending) -> BTreeMap<String, u64> {
        let spent = |(name, ns): (&String, &u64)| {
            (name.clone(), ns.saturating_sub(before.cpu_ns.get(name).copied().unwrap_or(0)))
        };
        self.cpu_ns.iter().map(spent).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_seen_in_the_thread_that_does_it() {
        let before = Spending::of(std::process::id()).unwrap();
        let began = std::time::Instant::now();
        while began.elapsed().as_millis() < 50 {}
        let after = Spending::of(std::process::id()).unwrap();
        assert!(after.since(&before).values().sum::<u64>() > 5_000_000);
        assert!(after.resident_bytes > 100_000);
    }
}
