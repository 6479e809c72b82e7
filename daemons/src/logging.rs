//! Where log lines go.
//!
//! Everything is logged through `tracing`; this file decides who sees it. A process has a **terminal** (standard
//! error) from its first line, and may get a **lasting** place: syslog through `/dev/log` (journald listens there
//! too), or a file where there is no such socket, as in most containers. A daemon writes to both while it starts, so
//! that whoever started it sees why it failed, and leaves the terminal once it runs.
//!
//! Environment: `MOORING_LOG` is a filter (`debug`, `info,chunk=trace`), `MOORING_LOG_FORMAT=json` makes one JSON object per line.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::unix::net::UnixDatagram;
use std::panic::PanicHookInfo;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

const SYSLOG_SOCKET: &str = "/dev/log";
/// Facility "daemon", in the place where a syslog priority has it.
const SYSLOG_FACILITY: u8 = 3 << 3;

static TERMINAL_LEFT: AtomicBool = AtomicBool::new(false);
static LASTING: Mutex<Option<Lasting>> = Mutex::new(None);

/// Log lines that stay after the terminal is gone.
enum Lasting {
    Syslog { socket: UnixDatagram, ident: String },
    File(File),
}

/// Begin logging to standard error. `verbosity`: 0 is informational, 1 debug, 2 trace, -1 warnings only; the
/// environment wins. A second call in one process changes nothing.
pub fn init(verbosity: i8) {
    let default = match verbosity {
        ..=-1 => "warn",
        0 => "info",
        1 => "debug",
        2.. => "trace",
    };
    let filter = EnvFilter::try_from_env("MOORING_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let show_target = verbosity > 0;
    let layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> =
        if std::env::var("MOORING_LOG_FORMAT").is_ok_and(|format| format == "json") {
            vec![
                tracing_subscriber::fmt::layer().json().with_writer(Terminal).boxed(),
                tracing_subscriber::fmt::layer().json().with_writer(LastingWriter).boxed(),
            ]
        } else {
            vec![
                tracing_subscriber::fmt::layer()
                    .with_target(show_target)
                    .with_ansi(io::stderr().is_terminal())
                    .with_writer(Terminal)
                    .boxed(),
                tracing_subscriber::fmt::layer()
                    .with_target(show_target)
                    .with_ansi(false)
                    .with_timer(LastingTime)
                    .with_writer(LastingWriter)
                    .boxed(),
            ]
        };
    // An error means that logging was set up before, by a test for example.
    let _ = tracing_subscriber::registry().with(layers).with(filter).try_init();
    log_panics();
}

/// From now on a panic of any thread is also logged. The standard library says it on standard error alone, which a daemon
/// has left.
fn log_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            before(info);
            tracing::error!("{}", panic_sentence(info));
        }));
    });
}

fn panic_sentence(info: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let text = info.payload().downcast_ref::<String>().map(String::as_str);
    let why = text.or_else(|| info.payload().downcast_ref::<&str>().copied()).unwrap_or("no message");
    let at = info.location().map_or_else(String::new, |at| format!(" at {at}"));
    format!("a defect: thread {} panicked{at}: {why}", thread.name().unwrap_or("without a name"))
}

/// Also after a panic of a thread that was writing a line: that panic is what must be logged next.
fn lasting() -> MutexGuard<'static, Option<Lasting>> {
    LASTING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on keep log lines in syslog under the name `ident`, or in the file at `fallback` where there is no syslog.
/// Returns a sentence that says which. Errors: the file cannot be opened for writing.
pub fn keep(ident: &str, fallback: &Path) -> io::Result<String> {
    let (place, sentence) = match syslog() {
        Ok(socket) => (Lasting::Syslog { socket, ident: ident.to_owned() }, format!("logging to syslog as {ident}")),
        Err(_) => {
            let file = File::options().create(true).append(true).open(fallback)?;
            (Lasting::File(file), format!("no {SYSLOG_SOCKET} here - logging to {}", fallback.display()))
        }
    };
    *lasting() = Some(place);
    Ok(sentence)
}

/// Write nothing to standard error any more.
pub fn leave_terminal() {
    TERMINAL_LEFT.store(true, Ordering::Relaxed);
}

fn syslog() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(SYSLOG_SOCKET)?;
    // A log daemon that hangs must not hang the file system: a line that does not fit at once is dropped.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Standard error until the terminal is left.
struct Terminal;

impl<'a> MakeWriter<'a> for Terminal {
    type Writer = Box<dyn Write>;

    fn make_writer(&'a self) -> Self::Writer {
        if TERMINAL_LEFT.load(Ordering::Relaxed) { Box::new(io::sink()) } else { Box::new(io::stderr()) }
    }
}

/// The lasting place, if there is one.
struct LastingWriter;

/// One line on its way; `severity` is syslog's.
struct LastingLine {
    severity: u8,
}

impl<'a> MakeWriter<'a> for LastingWriter {
    type Writer = LastingLine;

    fn make_writer(&'a self) -> LastingLine {
        LastingLine { severity: 6 }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> LastingLine {
        LastingLine { severity: severity(*metadata.level()) }
    }
}

impl Write for LastingLine {
    /// `line` is one whole event: the formatter writes each in a single call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &mut *lasting() {
            None => {}
            Some(Lasting::File(file)) => file.write_all(line)?,
            Some(Lasting::Syslog { socket, ident }) => {
                let packet = syslog_packet(self.severity, ident, std::process::id(), line);
                if socket.send(&packet).is_err()
                    && let Ok(fresh) = syslog()
                {
                    // The log daemon was restarted; a line that is lost a second time is lost.
                    let _ = fresh.send(&packet);
                    *socket = fresh;
                }
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `<27>mfsmaster[4711]: text`. The log daemon adds the time.
fn syslog_packet(severity: u8, ident: &str, pid: u32, line: &[u8]) -> Vec<u8> {
    let mut packet = format!("<{}>{ident}[{pid}]: ", SYSLOG_FACILITY | severity).into_bytes();
    packet.extend_from_slice(line.trim_ascii());
    packet
}

fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// A file needs the time in each line; syslog has its own.
struct LastingTime;

impl FormatTime for LastingTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let to_file = matches!(&*lasting(), Some(Lasting::File(_)));
        if to_file { SystemTime.format_time(writer) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(line)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_panic_is_logged_with_its_thread_place_and_message() {
        log_panics();
        let kept = Kept::default();
        let writer = kept.clone();
        let thread = std::thread::Builder::new().name("chunks-1".to_owned()).spawn(move || {
            let logged = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
            tracing::subscriber::with_default(logged, || panic!("on {}", "purpose"));
        });
        assert!(thread.unwrap().join().is_err());
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        let said = ["ERROR", "thread chunks-1 panicked at ", "logging.rs", ": on purpose"];
        assert!(said.iter().all(|part| text.contains(part)), "{text}");
    }

    #[test]
    fn a_syslog_packet_has_priority_name_and_pid_and_no_newline() {
        assert_eq!(syslog_packet(3, "mfsmaster", 4711, b" ERROR disk gone\n"), b"<27>mfsmaster[4711]: ERROR disk gone");
        assert_eq!(severity(Level::INFO), 6);
    }
}
