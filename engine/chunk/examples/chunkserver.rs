//! A chunkserver without a configuration file, for trying the engine by itself.
//!
//! `chunkserver DATA_PATH LISTEN_IP:PORT MASTER_IP:PORT direct|buffered|dontcache DRIVER FOLDER...`; ends when standard input does.
//! In the environment: LABELS, BLOCK_CACHE_MIB, CORES.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a tool for developers: it may end with a panic")]

use std::net::SocketAddrV4;
use std::path::PathBuf;

use chunk::folders::parse_folders;
use chunk::settings::{IoMode, Settings};

fn main() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments: Vec<String> = std::env::args().collect();
    let [_, data_path, listen, master, mode, driver, folders @ ..] = arguments.as_slice() else {
        eprintln!("usage: chunkserver DATA_PATH LISTEN MASTER direct|buffered|dontcache DRIVER FOLDER...");
        std::process::exit(1);
    };
    let (listen, master): (SocketAddrV4, SocketAddrV4) = (listen.parse().unwrap(), master.parse().unwrap());
    let settings = Settings {
        listen_ip: *listen.ip(),
        listen_port: listen.port(),
        bind_ip: Some(*listen.ip()),
        master_host: master.ip().to_string(),
        master_port: master.port(),
        labels: chunk::folders::parse_labels(&std::env::var("LABELS").unwrap_or_default()),
        io_mode: match mode.as_str() {
            "direct" => IoMode::Direct,
            "dontcache" => IoMode::DontCache,
            _ => IoMode::Buffered,
        },
        cores: std::env::var("CORES").map_or(0, |cores| cores.parse().unwrap()),
        block_cache_mib: std::env::var("BLOCK_CACHE_MIB").map_or(64, |mib| mib.parse().unwrap()),
        ..Settings::new(PathBuf::from(data_path), parse_folders(&folders.join("\n")))
    };
    let options =
        ring::Options { driver: driver.parse().unwrap(), buffers: settings.buffers(), ..ring::Options::default() };
    let (sender, mut receiver) = ring::channel::channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        drop(sender);
    });
    let stop = async move {
        receiver.recv().await;
    };
    let result = ring::run(options, |ring| chunk::server::run(ring, settings, stop, || println!("ready"))).unwrap();
    if let Err(error) = result {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
