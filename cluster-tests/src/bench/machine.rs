//! What machine the figures are from.

/// As `/proc` tells it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Machine {
    /// Of the first processor.
    pub processor: String,
    /// How many.
    pub cores: usize,
    /// Of memory.
    pub gigabytes: f64,
    /// Its release.
    pub kernel: String,
    /// The distribution.
    pub system: String,
    /// Processes that wanted to run in the last minute: what else the machine had to do.
    pub load: String,
}

impl Machine {
    /// This one, now. What cannot be read stays empty.
    pub fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let models = || cpuinfo.lines().filter(|line| line.starts_with("model name"));
        let value = |line: &str| line.split_once(':').map(|(_, value)| value.trim().to_owned());
        let memory = read("/proc/meminfo");
        let kilobytes = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kilobytes =
            kilobytes.and_then(|line| line.split_whitespace().next()?.parse::<u32>().ok()).unwrap_or(0);
        let release = read("/etc/os-release");
        let system = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        Self {
            processor: models().next().and_then(value).unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            gigabytes: f64::from(kilobytes) / f64::from(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            system: system.unwrap_or_default().trim_matches('"').to_owned(),
            load: read("/proc/loadavg").split_whitespace().next().unwrap_or_default().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_kernel_and_a_load() {
        let here = Machine::here();
        assert!(here.cores > 0 && !here.kernel.is_empty() && here.gigabytes > 0.0, "{here:?}");
        assert!(here.load.parse::<f64>().is_ok(), "{here:?}");
    }
}
