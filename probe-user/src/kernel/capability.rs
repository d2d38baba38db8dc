//! The capabilities oomprobe can make use of.

use serde::{Serialize, Serializer, ser::SerializeSeq};

macro_rules! capabilities {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $kernel:literal;)*) => {
        /// One capability (`include/uapi/linux/capability.h`); its value is its number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Capability {
            $($(#[$doc])* $name = $number,)*
        }

        impl Capability {
            /// All of them, by number.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The kernel's name, as in capabilities(7).
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $kernel,)*
                }
            }
        }
    };
}

capabilities! {
    /// Reads log directories and files of other users.
    DacReadSearch = 2, "CAP_DAC_READ_SEARCH";
    /// Reads `/proc/<pid>` details of other users' processes.
    SysPtrace = 19, "CAP_SYS_PTRACE";
    /// Stands for CAP_BPF and CAP_PERFMON, and for both on kernels before 5.8.
    SysAdmin = 21, "CAP_SYS_ADMIN";
    /// Raises RLIMIT_MEMLOCK and lowers the own oom_score_adj.
    SysResource = 24, "CAP_SYS_RESOURCE";
    /// Shows kernel addresses, so that kernel stacks have names.
    Syslog = 34, "CAP_SYSLOG";
    /// Attaches tracing programs and lets them read kernel memory.
    Perfmon = 38, "CAP_PERFMON";
    /// Loads BPF programs and creates maps.
    Bpf = 39, "CAP_BPF";
}

impl Capability {
    /// Number of the capability.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// A set of capabilities, as in `/proc/<pid>/status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// True if the set holds `capability` itself.
    pub const fn has(self, capability: Capability) -> bool {
        self.0 >> capability.number() & 1 == 1
    }

    /// True if the kernel grants what `capability` grants: CAP_SYS_ADMIN implies two of them.
    pub const fn grants(self, capability: Capability) -> bool {
        let implied = matches!(capability, Capability::Bpf | Capability::Perfmon)
            && self.has(Capability::SysAdmin);
        implied || self.has(capability)
    }
}

/// Serialises as the names of those that [`Capability`] knows.
impl Serialize for Capabilities {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut names = serializer.serialize_seq(None)?;
        for &capability in Capability::ALL
            .iter()
            .filter(|&&capability| self.has(capability))
        {
            names.serialize_element(capability.name())?;
        }
        names.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sys_admin_implies_bpf_and_perfmon_only() {
        let set = Capabilities(1 << Capability::SysAdmin.number());
        assert!(set.grants(Capability::Bpf) && set.grants(Capability::Perfmon));
        assert!(!set.has(Capability::Bpf) && !set.grants(Capability::Syslog));
    }

    #[test]
    fn sets_are_written_by_name() {
        let set = Capabilities(1 << 39 | 1 << 34 | 1);
        assert_eq!(
            serde_json::to_string(&set).unwrap(),
            r#"["CAP_SYSLOG","CAP_BPF"]"#
        );
    }
}
