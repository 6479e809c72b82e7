//! `mooring mount`, also called `mfsmount` and `mount.moosefs`: a file system of a Mooring or MooseFS master, mounted.
//!
//! [`options`] understands what is asked for, [`place`] looks at the mount point, [`run`] mounts and serves until the
//! file system is unmounted. What happens to the kernel's requests is the crate `fuse`'s affair, what happens on the
//! network the crate `client`'s. Spec 72, 1.

mod options;
mod place;
mod run;

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use options::{Options, Wish};

use crate::{logging, process};

/// Mount as `arguments` (without the program's name) ask; `called_as` is for messages.
///
/// Exit status, Spec 72, 1.4: 0 when the file system is mounted (in the foreground: when it is unmounted again), else 1.
pub fn main(arguments: &[OsString], called_as: &str) -> ExitCode {
    let options = match options::parse(arguments) {
        Ok(Wish::Mount(options)) => options,
        Ok(Wish::Help) => {
            eprint!("{}", usage(called_as));
            return ExitCode::FAILURE;
        }
        Ok(Wish::Version) => {
            println!("MFS version: 3.0.117-1 ; build: mooring {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(sentence) => {
            eprintln!("{sentence}\nsee: {called_as} -h for help");
            return ExitCode::FAILURE;
        }
    };
    let Some(mount_point) = options.mount_point.clone() else {
        eprintln!("no mount point was given\nsee: {called_as} -h for help");
        return ExitCode::FAILURE;
    };
    if !options.foreground && !options.detached {
        return in_background();
    }
    logging::init(i8::try_from(options.verbose).unwrap_or(i8::MAX));
    let outcome = place::check(&mount_point, options.nonempty).and_then(|mount_point| run::run(&options, &mount_point));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("{sentence}");
            // The background process has left standard error when something fails late; then the log has it.
            tracing::debug!("{sentence}");
            ExitCode::FAILURE
        }
    }
}

/// Start this program again as a background process, relay what it says until the file system is mounted, and take
/// over its result.
fn in_background() -> ExitCode {
    match try_in_background() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("can't start the background process: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_in_background() -> io::Result<ExitCode> {
    let mut arguments = std::env::args_os();
    let mut command = Command::new(std::env::current_exe()?);
    if let Some(called_as) = arguments.next() {
        command.arg0(called_as);
    }
    let mut child = command
        .args(arguments)
        .arg("--detached")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut messages = child.stderr.take().expect("asked for above");
    let relay = thread::spawn(move || io::copy(&mut messages, &mut io::stderr()));
    let is_mounted = process::wait_until_ready(child.stdout.take().expect("asked for above"));
    // Its standard error ends with the process, or when it has left the terminal.
    let _ = relay.join();
    if is_mounted {
        return Ok(ExitCode::SUCCESS);
    }
    child.wait()?;
    Ok(ExitCode::FAILURE)
}

fn usage(called_as: &str) -> String {
    let defaults = Options::default();
    format!(
        "usage: {called_as} [HOST[:PORT][:PATH]] [options] mountpoint

general options:
    -o opt,[opt...]         mount options
    -h   --help             print help
    -V   --version          print version
    -f                      foreground operation
    -d   -o debug           log more (implies -f)
    -s                      read requests with one thread

MFS options:
    -c CFGFILE              equivalent to '-o mfscfgfile=CFGFILE'
    -H HOST                 equivalent to '-o mfsmaster=HOST'
    -P PORT                 equivalent to '-o mfsport=PORT'
    -B IP                   equivalent to '-o mfsbind=IP'
    -L IP                   equivalent to '-o mfsproxy=IP'
    -S PATH                 equivalent to '-o mfssubfolder=PATH'
    -n   --nostdopts        do not add the option allow_other
    -o nonempty             allow to mount in a directory that is not empty
    -o mfscfgfile=CFGFILE   read options from CFGFILE (default: /etc/mfs/mfsmount.cfg)
    -o mfsmaster=HOST       master (default: {master})
    -o mfsport=PORT         its port (default: {port})
    -o mfsbind=IP           source address of connections
    -o mfsproxy=IP          where file tools find the mount (default: {proxy})
    -o mfssubfolder=PATH    directory that becomes the root (default: {subfolder})
    -o mfspassword=TEXT, mfspassfile=FILE, mfsmd5pass=MD5
    -o mfsdelayedinit       do not wait for the master
    -o mfswritecachesize=N  MiB of written data in memory, 16 to 2048 (default: {write_cache})
    -o mfsreadaheadsize=N   MiB of all read-ahead buffers, 16 to 2048 (default: {read_ahead})
    -o mfsreadaheadleng=N   bytes of one read-ahead request (default: {unit})
    -o mfsioretries=N       tries of one read or write before it fails: {retries} (default) are about two minutes,
                            forever waits until servers and master are back
    -o mfstimeout=N         seconds after which a read or write that cannot be done fails (default: 0, only tries count)
    -o mfserroronlostchunk, mfserroronnospace
                            fail at once instead of trying again
    -o mfsserverfsync       fsync returns when the chunkservers have the data, as MooseFS's does (default: when
                            their devices have it, where the chunkserver is Mooring's)
    -o mfscachemode=MODE    AUTO (default), YES, NO or DIRECT
    -o mfsattrcacheto=S, mfsentrycacheto=S, mfsdirentrycacheto=S, mfsnegentrycacheto=S, mfsxattrcacheto=S,
       mfsgroupscacheto=S, mfsreaddirplusminto=S
                            seconds for which attributes, names of files, of directories, missing names, extended
                            attributes, groups of processes, and entries of listings are kept
    -o mfsnoxattrs, mfsnoposixlocks, mfsnobsdlocks
                            leave these to the local system
    -o mfssuid, mfsdev      honour set-user-id bits, devices
    -o mfsringdriver=D      auto (default), uring or epoll
    -o mfsthreads=N         threads that read requests (default: {threads})
Options of the kernel (ro, noexec, noatime, default_permissions ...) are handed on.
",
        master = defaults.master,
        port = defaults.port,
        proxy = defaults.proxy,
        subfolder = defaults.subfolder,
        write_cache = defaults.write_cache_bytes >> 20,
        read_ahead = defaults.read_ahead_bytes >> 20,
        unit = defaults.read_ahead_unit_bytes,
        retries = defaults.io_retries,
        threads = defaults.threads,
    )
}
