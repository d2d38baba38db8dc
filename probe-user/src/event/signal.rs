//! Names of signals: Linux on x86-64 and arm64 (`include/uapi/asm-generic/signal.h`).

use super::Signal;

const NAMES: [&str; 31] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

/// The first real-time signal that glibc leaves to programs.
const SIGRTMIN: u32 = 34;

impl Signal {
    /// The signal with that number, by its name.
    pub fn of(number: u32) -> Self {
        let name = match number {
            1..=31 => NAMES[number as usize - 1].to_owned(),
            SIGRTMIN => "SIGRTMIN".to_owned(),
            35..=64 => format!("SIGRTMIN+{}", number - SIGRTMIN),
            _ => format!("signal {number}"),
        };
        Self { number, name }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_the_names_that_kill_l_lists() {
        for (number, name) in [
            (1, "SIGHUP"),
            (9, "SIGKILL"),
            (11, "SIGSEGV"),
            (15, "SIGTERM"),
            (31, "SIGSYS"),
            (33, "signal 33"),
            (34, "SIGRTMIN"),
            (37, "SIGRTMIN+3"),
            (64, "SIGRTMIN+30"),
            (0, "signal 0"),
            (65, "signal 65"),
        ] {
            assert_eq!(Signal::of(number).name, name);
        }
    }
}
