//! What a stranger, a mistake or an attacker may send to a running cluster: it is turned away with a logged reason, and
//! those who behave are served as before.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::net::SocketAddrV4;
use std::path::Path;
use std::time::Duration;

use mooring_tests::cluster::{CSSERV_PORT, Cluster, Kind, Layout, MATOCL_PORT, MATOCS_PORT, MATOML_PORT};
use mooring_tests::daemon::Daemon;
use mooring_tests::namespace::{MASTER, chunkserver_address};
use mooring_tests::need::{Need, Role, effective, have};
use mooring_tests::tree::Random;
use mooring_tests::wait::{comes_true, wait_until};
use wire::{ChunkId, CltocsRead, CstoclReadStatus, Packet, Status, TicketKey, Version, ticket_rights};

const NEEDS: &[Need] = &[Need::Root, Need::Fuse, Need::Mooring];

/// How long a connection that sent nonsense may stay open, and a refused program may run.
const TURN_AWAY_LIMIT: Duration = Duration::from_secs(20);

#[test]
fn nonsense_on_any_port_is_logged_and_does_no_harm() {
    if !have("nonsense_on_any_port_is_logged_and_does_no_harm", NEEDS) {
        return;
    }
    let mut cluster = Cluster::start("nonsense", Layout::ours(2));
    let mount = cluster.mount(Kind::Mooring);
    std::fs::write(mount.join("before"), b"before").unwrap();

    for port in [MATOCL_PORT, MATOCS_PORT, MATOML_PORT, CSSERV_PORT] {
        for (what, bytes) in nonsense() {
            let address = match port {
                CSSERV_PORT => SocketAddrV4::new(chunkserver_address(0), port),
                _ => SocketAddrV4::new(MASTER, port),
            };
            let seen = log_length(&mut cluster, port);
            let answer = cluster.exchange(address, &bytes, TURN_AWAY_LIMIT);
            if port == MATOML_PORT && answer.refused {
                continue; // metaloggers are not served yet
            }
            assert!(answer.hung_up, "{what} on port {port}: the connection stayed open");
            assert_logged(&mut cluster, port, seen, what);
        }
        still_serves(&mut cluster, &mount, &format!("after-{port}"));
    }
    assert_eq!(std::fs::read(mount.join("before")).unwrap(), b"before");
    cluster.unmount_all();
    let mount = cluster.mount(Kind::Mooring);
    still_serves(&mut cluster, &mount, "last");
}

#[test]
fn connections_that_say_nothing_or_half_a_packet_do_not_hold_up_the_others() {
    if !have("connections_that_say_nothing_or_half_a_packet_do_not_hold_up_the_others", NEEDS) {
        return;
    }
    let mut cluster = Cluster::start("halves", Layout::ours(2));
    let mount = cluster.mount(Kind::Mooring);
    let half = header(400, 73); // a register packet whose payload never comes
    let mut silent = Vec::new();
    for port in [MATOCL_PORT, MATOCS_PORT, CSSERV_PORT] {
        let ip = if port == CSSERV_PORT { chunkserver_address(0) } else { MASTER };
        for bytes in [&b""[..], &half[..], &half[..5]] {
            let text: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            let script = format!("exec 3<>/dev/tcp/{ip}/{port}; printf '{text}' >&3; sleep 60");
            let mut command = cluster.command("bash");
            command.arg("-c").arg(script);
            silent.push(Daemon::start("silent client", command, &cluster.scratch("logs/silent.log")));
        }
    }
    for number in 0..20 {
        still_serves(&mut cluster, &mount, &format!("beside-{number}"));
    }
}

#[test]
fn a_wrong_password_is_refused_and_the_right_one_accepted() {
    if !have("a_wrong_password_is_refused_and_the_right_one_accepted", NEEDS) {
        return;
    }
    let mut layout = Layout::ours(1);
    layout.exports = "*  / rw,alldirs,maproot=0:0,password=rightpassword\n".into();
    let mut cluster = Cluster::start("password", layout);
    let port = MATOCL_PORT.to_string();
    let host = MASTER.to_string();
    for options in [&["-o", "mfspassword=wrongpassword"][..], &[]] {
        let seen = log_length(&mut cluster, MATOCL_PORT);
        let arguments = [&["-H", &host, "-P", &port], options].concat();
        let (status, said) = cluster.fail_to_mount(Kind::Mooring, &arguments, TURN_AWAY_LIMIT);
        let status = status.unwrap_or_else(|| panic!("{options:?}: the mount did not give up; it said: {said}"));
        assert!(!status.success(), "{options:?}: a refused mount must not end with success; it said: {said}");
        assert!(said.to_lowercase().contains("password"), "{options:?}: the user is not told why: {said}");
        assert_logged(&mut cluster, MATOCL_PORT, seen, "a wrong password");
    }
    let mount = cluster.mount_with(Kind::Mooring, &["-o", "mfspassword=rightpassword"]);
    still_serves(&mut cluster, &mount, "with the password");
}

#[test]
fn a_chunkserver_with_a_wrong_auth_code_is_refused_until_it_has_the_right_one() {
    if !have("a_chunkserver_with_a_wrong_auth_code_is_refused_until_it_has_the_right_one", NEEDS) {
        return;
    }
    let mut layout = Layout::ours(2);
    layout.master_extra = "AUTH_CODE = rightcode\n".into();
    layout.chunkserver_extra = "AUTH_CODE = rightcode\n".into();
    let mut cluster = Cluster::start("authcode", layout);
    let mount = cluster.mount(Kind::Mooring);
    cluster.stop_chunkserver(1);
    for (what, extra) in [("a wrong code", "AUTH_CODE = wrongcode\n"), ("no code", "")] {
        cluster.layout().chunkserver_extra = extra.into();
        let seen = log_length(&mut cluster, MATOCS_PORT);
        cluster.start_chunkserver_anyhow(1);
        assert_logged(&mut cluster, MATOCS_PORT, seen, what);
        still_serves(&mut cluster, &mount, what);
        cluster.kill_chunkserver(1);
    }
    cluster.layout().chunkserver_extra = "AUTH_CODE = rightcode\n".into();
    cluster.start_chunkserver(1);
    cluster.unmount_all();
    let mount = cluster.mount(Kind::Mooring); // waits for the space of both
    still_serves(&mut cluster, &mount, "both again");
}

#[test]
fn with_tickets_our_programs_work_and_a_stranger_gets_no_chunk() {
    if !have("with_tickets_our_programs_work_and_a_stranger_gets_no_chunk", NEEDS) {
        return;
    }
    let mut layout = Layout::ours(2);
    layout.master_extra = "AUTH_CODE = rightcode\nTICKETS = send\n".into();
    layout.chunkserver_extra = "AUTH_CODE = rightcode\nTICKETS = require\n".into();
    let mut cluster = Cluster::start("tickets", layout);
    let mount = cluster.mount(Kind::Mooring);
    still_serves(&mut cluster, &mount, "with tickets");
    let chunkid = ChunkId(1);
    let ask = CltocsRead { with_proto: false, chunkid, version: Version(1), offset: 0, size: 5 }.encode();
    let refused = CstoclReadStatus { chunkid, status: Status::EACCES }.encode();
    let key = TicketKey::new(b"rightcode");
    let ticket = key.sign(chunkid, ticket_rights::READ, u32::MAX).encode();
    let address = SocketAddrV4::new(chunkserver_address(0), CSSERV_PORT);
    let answer = |cluster: &Cluster, bytes: &[u8]| cluster.exchange(address, bytes, Duration::from_secs(2)).bytes;
    let told = answer(&cluster, &ask); // and NOPs
    assert!(told.starts_with(&refused), "a stranger who knows the chunk's number and version: {told:?}");
    let shown = answer(&cluster, &[ticket, ask].concat());
    assert!(!shown.starts_with(&refused) && !shown.is_empty(), "with a ticket it is read: {shown:?}");
    still_serves(&mut cluster, &mount, "with tickets, too");
}

#[test]
fn a_mount_pointed_at_a_wrong_port_gives_up_and_says_why() {
    if !have("a_mount_pointed_at_a_wrong_port_gives_up_and_says_why", NEEDS) {
        return;
    }
    let mut cluster = Cluster::start("port", Layout::ours(1));
    let mount = cluster.mount(Kind::Mooring);
    for (ip, port) in [(MASTER, MATOCS_PORT), (chunkserver_address(0), CSSERV_PORT), (MASTER, 4)] {
        let seen = log_length(&mut cluster, port);
        let (host, number) = (ip.to_string(), port.to_string());
        let arguments = ["-H", &host, "-P", &number];
        let (status, said) = cluster.fail_to_mount(Kind::Mooring, &arguments, Duration::from_secs(60));
        let status = status.unwrap_or_else(|| panic!("port {port}: the mount did not give up; it said: {said}"));
        assert!(!status.success(), "port {port}: it must not end with success; it said: {said}");
        assert!(!said.trim().is_empty(), "port {port}: the user is not told why");
        if port != 4 {
            assert_logged(&mut cluster, port, seen, "a mount at the wrong port");
        }
        still_serves(&mut cluster, &mount, &format!("after-{port}"));
    }
}

#[test]
fn a_chunkserver_pointed_at_the_clients_port_is_turned_away() {
    if !have("a_chunkserver_pointed_at_the_clients_port_is_turned_away", NEEDS) {
        return;
    }
    let mut cluster = Cluster::start("csport", Layout::ours(2));
    let mount = cluster.mount(Kind::Mooring);
    cluster.stop_chunkserver(1);
    let seen = log_length(&mut cluster, MATOCL_PORT);
    cluster.layout().chunkserver_extra = format!("MASTER_PORT = {MATOCL_PORT}\n");
    cluster.start_chunkserver_anyhow(1);
    assert_logged(&mut cluster, MATOCL_PORT, seen, "a chunkserver at the clients' port");
    still_serves(&mut cluster, &mount, "beside it");
}

// --- what the tests share ---

fn header(kind: u32, length: u32) -> Vec<u8> {
    [kind.to_be_bytes(), length.to_be_bytes()].concat()
}

/// Frames that no receiver accepts. Spec 10, 1: unknown types and wrong lengths close the connection; Spec 10, 1.2: so
/// does a length over the receiver's limit.
fn nonsense() -> Vec<(&'static str, Vec<u8>)> {
    let mut random = Random::new(12);
    vec![
        ("a web browser", b"GET / HTTP/1.1\r\nHost: example\r\n\r\n".to_vec()),
        ("the longest length there is", header(400, u32::MAX)),
        ("a length over every limit", [header(404, 0x7FFF_FFFF), random.bytes(1000)].concat()),
        ("an unknown type", [header(9999, 4), vec![0; 4]].concat()),
        ("a known type with a wrong length", [header(406, 1), vec![0]].concat()),
        ("random bytes with a small length", [header(200, 33), random.bytes(33)].concat()),
        ("ones", vec![0xFF; 4096]),
    ]
}

fn daemon_at(cluster: &mut Cluster, port: u16) -> &mut Daemon {
    if port == CSSERV_PORT { cluster.chunkserver(0) } else { cluster.master() }
}

fn log_length(cluster: &mut Cluster, port: u16) -> usize {
    daemon_at(cluster, port).log_text().len()
}

/// Waits for a line behind `seen` in the log of whoever serves `port` that names an address of our network: the peer.
fn assert_logged(cluster: &mut Cluster, port: u16, seen: usize, what: &str) {
    let role = if port == CSSERV_PORT { Role::Chunkserver } else { Role::Master };
    if effective(Kind::Mooring, role) == Kind::Stock {
        return; // MooseFS is often silent, or does not say whom it means
    }
    let daemon = daemon_at(cluster, port);
    let logged =
        comes_true(TURN_AWAY_LIMIT, || daemon.log_text()[seen..].lines().any(|line| line.contains("10.77.0.")));
    assert!(
        logged,
        "{what} on port {port}: {} has not logged who was turned away; new in its log: {}",
        daemon.name().to_owned(),
        &daemon.log_text()[seen..]
    );
}

/// A file written and read, through daemons that still run.
fn still_serves(cluster: &mut Cluster, mount: &Path, name: &str) {
    assert_eq!(cluster.master().ended(), None, "the master must survive");
    assert_eq!(cluster.chunkserver(0).ended(), None, "the chunkserver must survive");
    let path = mount.join(name);
    let content = Random::new(name.len() as u64).bytes(100_000);
    let written = std::fs::write(&path, &content).and_then(|()| std::fs::File::open(&path)?.sync_all());
    written.unwrap_or_else(|error| panic!("writing {name}: {error}"));
    wait_until("the file to be readable", Duration::from_secs(5), || {
        std::fs::read(&path).is_ok_and(|read| read == content)
    });
}
