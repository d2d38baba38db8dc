//! The user's terminal while a guest's shell has it.

use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;

use super::protocol::TerminalSize;

/// Raw mode on standard input; the terminal is as before when this is dropped.
pub(super) struct RawTerminal {
    before: libc::termios,
}

impl RawTerminal {
    /// Every key, Ctrl-C among them, goes to the guest from here on.
    pub(super) fn enter() -> io::Result<Self> {
        let mut before = MaybeUninit::uninit();
        // SAFETY: tcgetattr fills `before` if it succeeds.
        let before = unsafe {
            if libc::tcgetattr(libc::STDIN_FILENO, before.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            before.assume_init()
        };
        let mut raw = before;
        // SAFETY: both calls take a valid termios.
        let failed = unsafe {
            libc::cfmakeraw(&raw mut raw);
            libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const raw) != 0
        };
        if failed {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self { before })
        }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // SAFETY: `before` is what tcgetattr returned.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const self.before) };
    }
}

/// Size of the terminal on standard input; `None` if there is none.
pub(super) fn size() -> Option<TerminalSize> {
    if !io::stdin().is_terminal() {
        return None;
    }
    let mut size = MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: all-zero is a valid winsize, and the ioctl writes no more than one.
    let size = unsafe {
        libc::ioctl(libc::STDIN_FILENO, libc::TIOCGWINSZ, size.as_mut_ptr());
        size.assume_init()
    };
    // A serial line does not know its size.
    let or = |value, default| if value == 0 { default } else { value };
    Some(TerminalSize {
        rows: or(size.ws_row, 24),
        columns: or(size.ws_col, 80),
    })
}
