//! What the environment variable `GRANULE_SIM` says: devices, sizes, seed, versions.

use std::collections::BTreeSet;

/// How the simulated machine looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// Number of devices (`devices=`), 0 to [`Config::MOST_DEVICES`].
    pub(crate) devices: usize,
    /// Memory of each device in bytes (`memory=1GiB`).
    pub(crate) memory: u64,
    /// What each context takes of its device's memory, in bytes (`context=24MiB`).
    pub(crate) context: u64,
    /// Granularity of virtual memory in bytes (`granularity=2MiB`): a power of two, at least a page.
    pub(crate) granularity: u64,
    /// Seed of every schedule (`seed=`).
    pub(crate) seed: u64,
    /// Driver version as `cuDriverGetVersion` says it (`driver=12040`).
    pub(crate) driver: i32,
    /// Compute capability, major and minor (`cc=80` or `cc=8.0`).
    pub(crate) compute_capability: (i32, i32),
    /// Devices reach each other's memory (`peers=on|off`).
    pub(crate) peers: bool,
    /// Virtual memory (`virtual-memory=on|off`).
    pub(crate) virtual_memory: bool,
    /// Read-only access descriptors (`read-only=on|off`).
    pub(crate) read_only: bool,
    /// Handles on the host (`host-granules=on|off`).
    pub(crate) host_granules: bool,
    /// Managed memory (`managed=on|off`).
    pub(crate) managed: bool,
    /// Stream-ordered allocation (`pools=on|off`).
    pub(crate) pools: bool,
    /// Reports that nobody took end the process with status 97 (`strict=1`).
    pub(crate) strict: bool,
    /// Every report also goes to stderr (`print=on|off`).
    pub(crate) print: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            devices: 2,
            memory: 1 << 30,
            context: 0,
            granularity: 2 << 20,
            seed: 1,
            driver: 12040,
            compute_capability: (8, 0),
            peers: true,
            virtual_memory: true,
            read_only: true,
            host_granules: true,
            managed: true,
            pools: true,
            strict: false,
            print: true,
        }
    }
}

impl Config {
    pub(crate) const MOST_DEVICES: usize = 16;

    /// Reads `key=value,key=value`; what is not named keeps its default. The error names the key and what it takes.
    pub(crate) fn parse(text: &str) -> Result<Config, String> {
        let mut config = Config::default();
        let mut seen = BTreeSet::new();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is not key=value"))?;
            let (key, value) = (key.trim(), value.trim());
            if !seen.insert(key) {
                return Err(format!("`{key}` is given twice"));
            }
            config.set(key, value).map_err(|takes| format!("{key}={value}: {takes}"))?;
        }
        Ok(config)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "devices" => {
                self.devices = whole(value)?
                    .try_into()
                    .ok()
                    .filter(|&n| n <= Config::MOST_DEVICES)
                    .ok_or_else(|| format!("takes 0 to {}", Config::MOST_DEVICES))?;
            }
            "memory" => {
                self.memory = size(value)?;
                if !(1 << 20..=1 << 38).contains(&self.memory) {
                    return Err("takes 1MiB to 256GiB".into());
                }
            }
            "context" => self.context = size(value)?,
            "granularity" => {
                self.granularity = size(value)?;
                if !self.granularity.is_power_of_two() || !(1 << 16..=1 << 30).contains(&self.granularity) {
                    return Err("takes a power of two, 64KiB to 1GiB".into());
                }
            }
            "seed" => self.seed = whole(value)?,
            "driver" => {
                self.driver = whole(value)?
                    .try_into()
                    .ok()
                    .filter(|v| (11000..20000).contains(v))
                    .ok_or("takes a version such as 12040")?;
            }
            "cc" => {
                let digits = value.replace('.', "");
                let number: i32 =
                    digits.parse().map_err(|_| "takes a compute capability such as 80 or 9.0")?;
                if !(50..200).contains(&number) {
                    return Err("takes a compute capability such as 80 or 9.0".into());
                }
                self.compute_capability = (number / 10, number % 10);
            }
            "peers" => self.peers = switch(value)?,
            "virtual-memory" => self.virtual_memory = switch(value)?,
            "read-only" => self.read_only = switch(value)?,
            "host-granules" => self.host_granules = switch(value)?,
            "managed" => self.managed = switch(value)?,
            "pools" => self.pools = switch(value)?,
            "strict" => self.strict = switch(value)?,
            "print" => self.print = switch(value)?,
            _ => {
                return Err(
                    "no such key; there are devices, memory, context, granularity, seed, driver, cc, peers, \
                            virtual-memory, read-only, host-granules, managed, pools, strict, print"
                        .into(),
                );
            }
        }
        Ok(())
    }
}

fn whole(value: &str) -> Result<u64, String> {
    value.parse().map_err(|_| "takes a whole number".to_owned())
}

fn switch(value: &str) -> Result<bool, String> {
    match value {
        "1" | "on" | "true" | "yes" => Ok(true),
        "0" | "off" | "false" | "no" => Ok(false),
        _ => Err("takes on or off".into()),
    }
}

fn size(value: &str) -> Result<u64, String> {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0), ("", 0)];
    units
        .iter()
        .find_map(|(unit, shift)| {
            let number: u64 = value.strip_suffix(unit)?.trim().parse().ok()?;
            number.checked_mul(1 << shift)
        })
        .ok_or_else(|| "takes a size such as 64MiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_keeps_its_default() {
        let config = Config::parse("memory=64MiB, context=24MiB,seed=7,cc=9.0,peers=off").unwrap();
        let expected = Config {
            memory: 64 << 20,
            context: 24 << 20,
            seed: 7,
            compute_capability: (9, 0),
            peers: false,
            ..Config::default()
        };
        assert_eq!(config, expected);
        assert_eq!(Config::parse("").unwrap(), Config::default());
    }

    #[test]
    fn a_mistake_is_named() {
        for (text, said) in [
            ("devices=many", "devices=many: takes a whole number"),
            ("devices=17", "takes 0 to 16"),
            ("granularity=3MiB", "power of two"),
            ("memroy=1GiB", "memroy=1GiB: no such key"),
            ("seed", "`seed` is not key=value"),
            ("seed=1,seed=2", "`seed` is given twice"),
            ("cc=7", "compute capability"),
            ("memory=1PB", "takes a size"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
