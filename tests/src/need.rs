//! What a test needs from the machine. What is missing is printed, past the test runner's capture, so that a skipped
//! test never looks like one that passed; where `MOORING_REQUIRE_INTEROP=1` is set (CI does) it is a failure.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::cluster::Kind;

/// One thing that not every machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Network namespaces and mounts of other people's files need uid 0.
    Root,
    /// `/dev/fuse` and `umount`.
    Fuse,
    /// MooseFS's own programs, as Debian packages them.
    Stock,
    /// Our binary, built.
    Mooring,
    /// A program of the system.
    Program(&'static str),
    /// A program of the Rust package registry.
    Tool(&'static str),
    /// A user of this machine.
    User(&'static str),
}

/// Whether everything in `needs` is there. If not, says so on stderr, or panics where interop is required.
pub fn have(test: &str, needs: &[Need]) -> bool {
    let missing: Vec<String> = needs.iter().filter_map(|need| missing(*need)).collect();
    if missing.is_empty() {
        return true;
    }
    let reason = missing.join("; ");
    assert!(
        std::env::var("MOORING_REQUIRE_INTEROP").as_deref() != Ok("1"),
        "{test} cannot run here, and MOORING_REQUIRE_INTEROP=1 says that it must: {reason}"
    );
    say_loudly(&format!("SKIPPED: {test}: {reason}"));
    false
}

/// A plain write: what goes through `eprintln!` is swallowed when the test passes.
pub fn say_loudly(text: &str) {
    std::io::stderr().write_all(format!("\n{text}\n").as_bytes()).ok();
}

/// Where our binary stands: `MOORING_BIN`, else beside the test executable (`target/debug/mooring` and the like).
pub fn mooring_binary() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("MOORING_BIN") {
        return Some(PathBuf::from(path)).filter(|path| path.is_file());
    }
    let executable = std::env::current_exe().ok()?;
    let profile = executable.parent()?.parent()?; // target/debug/deps/interop-0123 -> target/debug
    Some(profile.join("mooring")).filter(|path| path.is_file())
}

/// Where a program stands that was installed from crates.io: in `PATH`, or in `bin` under target/tools.
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin");
    std::env::split_paths(&path).chain([ours]).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// What a process is in a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Master,
    Chunkserver,
    Mount,
    Metalogger,
}

/// `MOORING_ALL_STOCK=1` puts MooseFS's programs in every role. What fails then is the harness's fault, not ours.
pub fn everything_is_stock() -> bool {
    std::env::var("MOORING_ALL_STOCK").as_deref() == Ok("1")
}

/// The kind that really runs where a test asks for `kind`: `MOORING_STOCK=master,mount` (or `chunkserver`, `metalogger`) puts
/// MooseFS's programs in some roles, which tells whose fault a failure is.
pub fn effective(kind: Kind, role: Role) -> Kind {
    let stock = std::env::var("MOORING_STOCK").unwrap_or_default();
    let name = match role {
        Role::Master => "master",
        Role::Chunkserver => "chunkserver",
        Role::Mount => "mount",
        Role::Metalogger => "metalogger",
    };
    if everything_is_stock() || stock.split(',').any(|word| word == name) { Kind::Stock } else { kind }
}

fn missing(need: Need) -> Option<String> {
    match need {
        Need::Root => (!is_root()).then(|| "needs to run as root (network namespaces, mounts)".into()),
        Need::Fuse => (!Path::new("/dev/fuse").exists()).then(|| "there is no /dev/fuse".into()),
        Need::Stock => {
            let programs = ["/usr/sbin/mfsmaster", "/usr/sbin/mfschunkserver", "/usr/bin/mfsmount"];
            let absent: Vec<&str> = programs.into_iter().filter(|path| !Path::new(path).exists()).collect();
            (!absent.is_empty()).then(|| {
                format!("no {} (apt-get install moosefs-master moosefs-chunkserver moosefs-client)", absent.join(", "))
            })
        }
        Need::Program(name) => tool(name).is_none().then(|| format!("no program `{name}`")),
        Need::Tool(name) => {
            tool(name).is_none().then(|| format!("no program `{name}` (cargo install {name} --root target/tools)"))
        }
        Need::User(name) => {
            let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
            let known = users.lines().any(|line| line.split(':').next() == Some(name));
            (!known).then(|| format!("no user `{name}` (useradd -M {name})"))
        }
        Need::Mooring if everything_is_stock() => None,
        Need::Mooring => mooring_binary()
            .is_none()
            .then(|| "no binary `mooring` (set MOORING_BIN, or cargo build -p mooring)".into()),
    }
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}
