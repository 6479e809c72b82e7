//! What the operating system asks of a daemon: stop, read the configuration again, tell about yourself.
//!
//! One thread waits for signals and hands each on as a value; whoever listens decides what it means. Spec 71, 1.4.

use std::io;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

/// A wish from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Stop,
    Reload,
    Info,
}

/// Hand every wish to `deliver`, on a thread of its own, for the life of the process.
///
/// `foreground`: whether Ctrl-C means stop; a daemon ignores it. SIGPIPE is ignored by Rust's runtime already.
pub fn listen(foreground: bool, deliver: impl Fn(Wish) + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGQUIT, SIGTSTP, SIGTTIN, SIGTTOU])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if let Some(wish) = meaning(signal, foreground) {
                deliver(wish);
            }
        }
    })?;
    Ok(())
}

/// What a signal means here; most mean nothing.
fn meaning(signal: i32, foreground: bool) -> Option<Wish> {
    match signal {
        SIGTERM => Some(Wish::Stop),
        SIGINT if foreground => Some(Wish::Stop),
        SIGHUP => Some(Wish::Reload),
        SIGUSR1 => Some(Wish::Info),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_ignores_ctrl_c_and_a_foreground_process_stops() {
        assert_eq!(meaning(SIGINT, true), Some(Wish::Stop));
        assert_eq!(meaning(SIGINT, false), None);
        assert_eq!(meaning(SIGTERM, false), Some(Wish::Stop));
        assert_eq!(meaning(SIGHUP, false), Some(Wish::Reload));
        assert_eq!(meaning(SIGUSR1, false), Some(Wish::Info));
        assert_eq!(meaning(SIGQUIT, true), None);
    }
}
