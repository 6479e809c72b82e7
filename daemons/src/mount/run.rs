//! One mount from its connection to the master to its last written byte. Spec 72, 1.4 and 1.5.
//!
//! Threads: the core (client, adapter and everything that waits for the network), a few that read requests from the
//! kernel, one that passes notifications to it, one for signals.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use client::{Client, Event, MountError, Session, session_flags};
use fuse::adapter::Adapter;
use fuse::device::{self, MountSettings, Mounted, Notification};
use fuse::proxy;
use fuse::request::{Caller, Operation, Request};
use fuse::serve::serve;
use fuse::translate::CacheTimes;
use ring::Ring;
use tracing::{info, warn};

use super::options::Options;
use crate::{logging, process, signals};

/// How often a master that was given by name is looked up again.
const RESOLVE_AGAIN: Duration = Duration::from_secs(60);
/// Slots of the ring's pool. The client brings its own buffers.
const POOL_SLOTS: usize = 16;
/// Log of a background mount of root where there is no syslog.
const LOG_FILE: &str = "/var/log/mfsmount.log";

/// Mount at `mount_point` (resolved) and serve until it is unmounted, by whoever or by a signal. What was written is
/// on the chunkservers when this returns. Errors: a sentence; nothing is mounted then.
pub(super) fn run(options: &Options, mount_point: &Path) -> Result<(), String> {
    if options.detached {
        // A session of its own: the terminal's end and its Ctrl-C do not reach it. Fails only for a group leader.
        let _ = rustix::process::setsid();
        let _ = logging::keep("mfsmount", Path::new(LOG_FILE));
    }
    if options.exit_with_parent {
        process::end_with_parent();
    }
    for note in &options.notes {
        warn!("{note}");
    }
    let ring_options = ring::Options { driver: options.ring_driver, buffers: POOL_SLOTS, ..ring::Options::default() };
    let (options, mount_point) = (options.clone(), mount_point.to_owned());
    ring::run(ring_options, |ring| async move { mount(ring, &options, &mount_point).await })
        .unwrap_or_else(|error| Err(format!("can't start the runtime: {error}")))
}

async fn mount(ring: Ring, options: &Options, mount_point: &Path) -> Result<(), String> {
    let client = connect(&ring, options, mount_point).await?;
    match client.session() {
        Some(session) => eprintln!("mfsmaster accepted connection with parameters: {}", accepted(&session)),
        None => info!("the master is not there yet - mounting without it, as mfsdelayedinit asks"),
    }

    let settings = mount_settings(options, mount_point);
    let mounted = ring.run_blocking(move || Mounted::new(&settings)).await;
    let mut mounted = match mounted {
        Ok(mounted) => mounted,
        Err(error) => {
            client.close().await;
            return Err(format!("can't mount at {}: {}", mount_point.display(), mount_error(&error)));
        }
    };
    let device = mounted.device();
    let unmounter = Arc::new(mounted.unmounter());
    let notifier = device::start_notifier(device.clone()).map_err(|error| format!("can't start a thread: {error}"))?;

    let adapter = Adapter::new(&ring, client.clone(), notifier.clone(), adapter_settings(options));
    match proxy::start(&ring, client.clone(), options.proxy) {
        Ok(address) => adapter.set_proxy(address),
        Err(error) => {
            warn!("no proxy for file tools at {}: {error} - mfsgetgoal and the like will not work", options.proxy)
        }
    }
    pass_events_on(&ring, &client, notifier);
    resolve_again(&ring, &client, options);

    let (requests, receiver) = ring::channel::channel();
    unmount_on_signal(unmounter, mount_point, requests.clone())
        .map_err(|error| format!("can't wait for signals: {error}"))?;
    start_reading(&ring, mounted, options.threads, requests)
        .map_err(|error| format!("can't start a thread: {error}"))?;

    info!("mounted on {}", mount_point.display());
    ready(options);
    serve(ring, receiver, device, adapter).await;
    info!("unmounted - writing out what is left");
    client.close().await;
    info!("all is written, the session is closed");
    Ok(())
}

/// Feed the kernel's requests to the core until the file system is unmounted, by whomever; then the core is to end.
fn start_reading(
    ring: &Ring,
    mounted: Mounted,
    threads: usize,
    requests: ring::channel::Sender<Request>,
) -> std::io::Result<()> {
    let accept = {
        let requests = requests.clone();
        move |request| drop(requests.send(request))
    };
    // The signals' end of the channel keeps it open, so its end must be said.
    let ended = move |outcome: std::io::Result<()>| {
        if let Err(error) = outcome {
            tracing::error!("the connection to the kernel broke: {error}");
        }
        drop(requests.send(end_request()));
    };
    if threads > 0 {
        let reading = move || ended(mounted.read_requests(accept));
        return thread::Builder::new().name("fuse".into()).spawn(reading).map(drop);
    }
    let here = ring.clone();
    ring.spawn(async move { ended(mounted.read_requests_here(&here, accept).await) });
    Ok(())
}

async fn connect(ring: &Ring, options: &Options, mount_point: &Path) -> Result<Client, String> {
    let (host, port) = (options.master.clone(), options.port);
    let master = ring.run_blocking(move || resolve(&host, port)).await?;
    let settings = client::Settings {
        master,
        bind: options.bind,
        subfolder: options.subfolder.clone(),
        info: mount_point.display().to_string(),
        password_md5: options.password_md5,
        io_retries: options.io_retries,
        timeout_secs: options.timeout_secs,
        write_cache_bytes: options.write_cache_bytes,
        read_ahead_bytes: options.read_ahead_bytes,
        read_ahead_unit_bytes: options.read_ahead_unit_bytes,
        error_on_no_space: options.error_on_no_space,
        error_on_lost_chunk: options.error_on_lost_chunk,
        preference: options.preference.clone(),
        durable_fsync: !options.server_fsync,
        mkdir_copies_sgid: options.mkdir_copies_sgid,
        delayed_init: options.delayed_init,
        ..client::Settings::new(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))
    };
    Client::connect(ring.clone(), settings).await.map_err(|error| match error {
        MountError::CannotConnect(why) => {
            format!("can't connect to mfsmaster (\"{}\":\"{}\"): {why}", options.master, options.port)
        }
        MountError::Refused(status) => format!("mfsmaster register error: {}", status.text()),
        other => other.to_string(),
    })
}

/// All IPv4 addresses of the master.
fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddrV4>, String> {
    let found =
        (host, port).to_socket_addrs().map_err(|error| format!("can't resolve master hostname {host}: {error}"))?;
    let addresses: Vec<SocketAddrV4> = found
        .filter_map(|address| match address {
            SocketAddr::V4(address) => Some(address),
            SocketAddr::V6(_) => None,
        })
        .collect();
    if addresses.is_empty() { Err(format!("master {host} has no IPv4 address")) } else { Ok(addresses) }
}

/// A master given by name may move: look it up again from time to time, for the next reconnect.
fn resolve_again(ring: &Ring, client: &Client, options: &Options) {
    if options.master.parse::<Ipv4Addr>().is_ok() {
        return;
    }
    let (ring, client) = (ring.clone(), client.clone());
    let (host, port) = (options.master.clone(), options.port);
    ring.clone().spawn(async move {
        loop {
            ring.sleep(RESOLVE_AGAIN).await;
            let host = host.clone();
            if let Ok(addresses) = ring.run_blocking(move || resolve(&host, port)).await {
                client.set_master_addresses(addresses);
            }
        }
    });
}

/// The master's conditions, in MooseFS's words. Spec 72, 1.4.
fn accepted(session: &Session) -> String {
    let mut flags = vec![if session.flags & session_flags::READONLY != 0 { "read-only" } else { "read-write" }];
    flags.push(if session.flags & session_flags::DYNAMICIP != 0 { "not_restricted_ip" } else { "restricted_ip" });
    for (bit, name) in
        [(session_flags::IGNOREGID, "ignore_gid"), (session_flags::ADMIN, "admin"), (session_flags::MAPALL, "map_all")]
    {
        if session.flags & bit != 0 {
            flags.push(name);
        }
    }
    let mut text = flags.join(",");
    if session.umask != 0 {
        text += &format!(" ; global umask set to 0{:03o}", session.umask);
    }
    text += &format!(" ; root mapped to {}", user_and_group(session.root_uid, session.root_gid));
    if session.flags & session_flags::MAPALL != 0 {
        text += &format!(" ; users mapped to {}", user_and_group(session.map_all_uid, session.map_all_gid));
    }
    if session.goal_min > 1 || session.goal_max < 9 {
        text += &format!(" ; setgoal limited to ({}:{})", session.goal_min, session.goal_max);
    }
    let (least, most) = (session.trash_time_min_secs, session.trash_time_max_secs);
    if least > 0 || most < u32::MAX {
        text += &format!(" ; settrashtime limited to ({least}s:{most}s)");
    }
    if session.disables != 0 {
        text += &format!(" ; disabled commands: {:#x}", session.disables);
    }
    text
}

/// `root:root`, or numbers where there is no name.
fn user_and_group(uid: u32, gid: u32) -> String {
    let name = |file: &str, id: u32| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let found = text.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
        });
        found.unwrap_or_else(|| id.to_string())
    };
    format!("{}:{}", name("/etc/passwd", uid), name("/etc/group", gid))
}

fn mount_settings(options: &Options, mount_point: &Path) -> MountSettings {
    let source = options.source.clone().unwrap_or_else(|| format!("mfs#{}:{}", options.master, options.port));
    MountSettings {
        mount_point: mount_point.to_owned(),
        source,
        allow_other: options.allow_other,
        options: options.kernel_options.clone(),
        flock_locks: !options.no_bsd_locks,
        posix_locks: !options.no_posix_locks,
        threads: options.threads,
    }
}

fn mount_error(error: &std::io::Error) -> String {
    let text = error.to_string().trim().to_owned();
    if text.contains("user_allow_other") {
        return format!("{text} (or mount for yourself alone, with -n)");
    }
    text
}

fn adapter_settings(options: &Options) -> fuse::adapter::Settings {
    fuse::adapter::Settings {
        cache_times: CacheTimes {
            attributes: options.attributes_cache,
            directory_entry: options.directory_entry_cache,
            entry: options.entry_cache,
            negative_entry: options.negative_entry_cache,
            listing_min: options.listing_cache_min,
        },
        xattr_life: options.xattr_cache,
        groups_life: options.groups_cache,
        cache_mode: options.cache_mode,
        no_xattrs: options.no_xattrs,
        params: options.params(),
    }
}

/// What the master or this client's own work changed, the kernel is to forget.
fn pass_events_on(ring: &Ring, client: &Client, notifier: mpsc::Sender<Notification>) {
    let Some(mut events) = client.take_events() else { return };
    ring.spawn(async move {
        while let Some(event) = events.recv().await {
            let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
            let (inode, offset_bytes, length_bytes) = match event {
                // The kernel's "to the end" is 0.
                Event::DataChanged { inode, offset, length: u64::MAX } => (inode, signed(offset), 0),
                Event::DataChanged { inode, offset, length } => (inode, signed(offset), signed(length)),
                Event::LengthChanged { inode, length } => (inode, signed(length), 0),
            };
            let notification = Notification::Inode { inode: u64::from(inode.0), offset_bytes, length_bytes };
            if notifier.send(notification).is_err() {
                return; // the kernel is gone
            }
        }
    });
}

/// Unmount when asked to stop. With files still open the mount is only detached, and the core ends nevertheless.
fn unmount_on_signal(
    unmounter: Arc<device::Unmounter>,
    mount_point: &Path,
    requests: ring::channel::Sender<Request>,
) -> std::io::Result<()> {
    let mount_point = mount_point.to_owned();
    signals::listen(true, move |wish| match wish {
        signals::Wish::Info => {}
        signals::Wish::Stop | signals::Wish::Reload => {
            info!("a signal asks to end: unmounting {}", mount_point.display());
            if let Err(error) = unmounter.unmount(&mount_point) {
                warn!("can't unmount {}: {error} - try: umount -l {0}", mount_point.display());
            }
            drop(requests.send(end_request()));
        }
    })
}

fn end_request() -> Request {
    let nobody = Caller { uid: 0, gid: 0, pid: 0 };
    Request { unique: 0, inode: 0, caller: nobody, operation: Operation::Destroy }
}

/// The file system is there: tell whoever waits, and leave the terminal if this is the background process.
fn ready(options: &Options) {
    if options.detached {
        let _ = std::env::set_current_dir("/");
        logging::leave_terminal();
        match File::options().read(true).write(true).open("/dev/null") {
            Ok(null) => {
                // First the messages, so that whoever reads them sees their end; then the word on standard output.
                let _ = rustix::stdio::dup2_stderr(&null);
                process::announce();
                let _ = rustix::stdio::dup2_stdout(&null);
            }
            Err(_) => process::announce(),
        }
    } else if options.announce_ready {
        process::announce();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::{MetaId, SessionId, VersionWord};

    fn session() -> Session {
        Session {
            master: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9421),
            local: Ipv4Addr::LOCALHOST,
            master_version: VersionWord::OURS,
            id: SessionId(1),
            metaid: MetaId(2),
            flags: session_flags::ADMIN,
            umask: 0,
            root_uid: 0,
            root_gid: 0,
            map_all_uid: 999,
            map_all_gid: 999,
            goal_min: 1,
            goal_max: 9,
            trash_time_min_secs: 0,
            trash_time_max_secs: u32::MAX,
            disables: 0,
            long_times: false,
            unclean_ends: false,
            tickets: false,
        }
    }

    #[test]
    fn the_masters_conditions_are_told_as_mfsmount_tells_them() {
        assert_eq!(accepted(&session()), "read-write,restricted_ip,admin ; root mapped to root:root");
        let strict = Session {
            flags: session_flags::READONLY | session_flags::DYNAMICIP | session_flags::MAPALL,
            umask: 0o027,
            map_all_uid: 4_000_000,
            map_all_gid: 4_000_001,
            goal_min: 2,
            ..session()
        };
        assert_eq!(
            accepted(&strict),
            "read-only,not_restricted_ip,map_all ; global umask set to 0027 ; root mapped to root:root \
             ; users mapped to 4000000:4000001 ; setgoal limited to (2:9)"
        );
    }

    #[test]
    fn addresses_are_taken_as_they_are() {
        assert_eq!(resolve("127.0.0.5", 9), Ok(vec![SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 5), 9)]));
    }
}
