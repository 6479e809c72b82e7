//! Whom the master serves, and what it tells to whom.

use super::*;

/// Connects and asks for the version; `None`: the master hung up.
async fn version_of(ring: &Ring, port: u16) -> Option<u32> {
    let mut peer = Peer::connect(ring, port).await;
    peer.send(AntoanGetVersion { msgid: Some(1) }.encode()).await;
    peer.take().await.map(|(kind, _)| kind)
}

async fn option_of(ring: &Ring, port: u16, option: &str) -> Vec<u8> {
    let mut peer = Peer::connect(ring, port).await;
    let option = Name::new(option.as_bytes()).unwrap();
    peer.send(AntoanGetConfig { msgid: 1, option }.encode()).await;
    let (_, payload) = peer.take().await.expect("an answer");
    AntoanConfigValue::decode(&payload).unwrap().value.as_bytes().to_vec()
}

#[test]
fn chunkservers_and_metaloggers_come_from_the_addresses_that_are_listed_for_them() {
    let scene = Scene::with(51, "* / rw\n", |settings| {
        settings.chunkservers_allowed = AddressList::parse("10.0.0.11-10.0.0.12").unwrap();
        settings.metaloggers_allowed = AddressList::parse("10.0.0.31").unwrap();
    });
    let check = |port: u16, last: u8, is_served: bool| {
        let answer = scene.play(last, move |ring| async move { version_of(&ring, port).await });
        assert_eq!(answer.is_some(), is_served, "10.0.0.{last} on port {port}");
    };
    for (port, listed) in [(9420, 11), (9420, 12), (9419, 31)] {
        check(port, listed, true);
    }
    for (port, stranger) in [(9420, 13), (9420, 31), (9419, 11)] {
        check(port, stranger, false);
    }
    check(9421, 99, true); // the exports decide about clients, when they register
}

#[test]
fn where_files_lie_is_told_to_administrators_alone() {
    let scene = Scene::with(52, "10.0.0.21 / rw,admin\n* / rw\n", |settings| {
        settings.options = [("DATA_PATH", "/data"), ("BACK_LOGS", "7"), ("EXPORTS_FILENAME", "/data/exports")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec();
    });
    let ask = |last: u8, port: u16, option: &'static str| {
        scene.play(last, move |ring| async move { option_of(&ring, port, option).await })
    };
    for port in [9419, 9420, 9421] {
        assert_eq!(ask(21, port, "DATA_PATH"), b"/data", "{port}");
        assert_eq!(ask(22, port, "DATA_PATH"), b"[DEFINED]", "{port}");
        assert_eq!(ask(22, port, "BACK_LOGS"), b"7", "{port}");
        assert_eq!(ask(22, port, "EXPORTS_FILENAME"), b"[DEFINED]", "{port}");
        assert_eq!(ask(22, port, "TOPOLOGY_FILENAME"), b"", "{port}");
    }
}
