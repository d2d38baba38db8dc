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

    /// Name of the `si_code` of a signal (include/uapi/asm-generic/siginfo.h); the number where it
    /// has none. Positive codes mean something else for every signal.
    pub fn code_name(signal: i32, si_code: i32) -> String {
        let names: &[&str] = match signal {
            libc::SIGILL => &[
                "ILL_ILLOPC",
                "ILL_ILLOPN",
                "ILL_ILLADR",
                "ILL_ILLTRP",
                "ILL_PRVOPC",
                "ILL_PRVREG",
                "ILL_COPROC",
                "ILL_BADSTK",
                "ILL_BADIADDR",
            ],
            libc::SIGFPE => &[
                "FPE_INTDIV",
                "FPE_INTOVF",
                "FPE_FLTDIV",
                "FPE_FLTOVF",
                "FPE_FLTUND",
                "FPE_FLTRES",
                "FPE_FLTINV",
                "FPE_FLTSUB",
            ],
            libc::SIGSEGV => &[
                "SEGV_MAPERR",
                "SEGV_ACCERR",
                "SEGV_BNDERR",
                "SEGV_PKUERR",
                "SEGV_ACCADI",
                "SEGV_ADIDERR",
                "SEGV_ADIPERR",
                "SEGV_MTEAERR",
                "SEGV_MTESERR",
                "SEGV_CPERR",
            ],
            libc::SIGBUS => &[
                "BUS_ADRALN",
                "BUS_ADRERR",
                "BUS_OBJERR",
                "BUS_MCEERR_AR",
                "BUS_MCEERR_AO",
            ],
            libc::SIGTRAP => &[
                "TRAP_BRKPT",
                "TRAP_TRACE",
                "TRAP_BRANCH",
                "TRAP_HWBKPT",
                "TRAP_UNK",
                "TRAP_PERF",
            ],
            libc::SIGCHLD => &[
                "CLD_EXITED",
                "CLD_KILLED",
                "CLD_DUMPED",
                "CLD_TRAPPED",
                "CLD_STOPPED",
                "CLD_CONTINUED",
            ],
            libc::SIGIO => &[
                "POLL_IN", "POLL_OUT", "POLL_MSG", "POLL_ERR", "POLL_PRI", "POLL_HUP",
            ],
            libc::SIGSYS => &["SYS_SECCOMP", "SYS_USER_DISPATCH"],
            _ => &[],
        };
        let name = match si_code {
            0 => Some("SI_USER"),
            0x80 => Some("SI_KERNEL"),
            -1 => Some("SI_QUEUE"),
            -2 => Some("SI_TIMER"),
            -3 => Some("SI_MESGQ"),
            -4 => Some("SI_ASYNCIO"),
            -5 => Some("SI_SIGIO"),
            -6 => Some("SI_TKILL"),
            -7 => Some("SI_DETHREAD"),
            -60 => Some("SI_ASYNCNL"),
            1.. => usize::try_from(si_code - 1)
                .ok()
                .and_then(|index| names.get(index).copied()),
            _ => None,
        };
        name.map_or_else(|| si_code.to_string(), str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_names_that_sigaction_2_lists() {
        for (signal, code, name) in [
            (9, 0, "SI_USER"),
            (11, 0x80, "SI_KERNEL"),
            (6, -6, "SI_TKILL"),
            (11, 1, "SEGV_MAPERR"),
            (11, 10, "SEGV_CPERR"),
            (11, 11, "11"),
            (7, 2, "BUS_ADRERR"),
            (8, 1, "FPE_INTDIV"),
            (4, 2, "ILL_ILLOPN"),
            (5, 6, "TRAP_PERF"),
            (31, 1, "SYS_SECCOMP"),
            (9, 1, "1"),
            (9, -99, "-99"),
            (9, i32::MIN, "-2147483648"),
        ] {
            assert_eq!(Signal::code_name(signal, code), name, "{signal} {code}");
        }
    }

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
