//! The one binary: `mooring master`, or the same program called `mfsmaster`.
//!
//! Under a name of MooseFS it takes that program's command line and returns its exit statuses, so that a link is all
//! that a service file or a script needs. Everything else is in the library beside this file.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use daemons::process::{self, CHUNKSERVER, MASTER, METALOGGER};
use daemons::{demo, huge, mount, probe, promote, serve, statsdump, stock, why};

/// A distributed file system that takes MooseFS's place
#[derive(Parser)]
#[command(name = "mooring", version, arg_required_else_help = true)]
struct Mooring {
    #[command(subcommand)]
    function: Function,
}

#[derive(Subcommand)]
enum Function {
    /// The master: names, attributes, and where the data is (mfsmaster)
    #[command(disable_version_flag = true)]
    Master(MasterArguments),
    /// A chunkserver: keeps data on the disks of one machine (mfschunkserver)
    #[command(disable_version_flag = true)]
    Chunkserver(process::Arguments),
    /// A metalogger: keeps a copy of the master's metadata (mfsmetalogger)
    #[command(disable_version_flag = true)]
    Metalogger(process::Arguments),
    Promote(promote::Arguments),
    Import(stock::ImportArguments),
    Export(stock::ExportArguments),
    Metadump(stock::DumpArguments),
    Metarestore(stock::restore::Arguments),
    Metadirinfo(stock::dirinfo::Arguments),
    Statsdump(statsdump::Arguments),
    /// Mount a file system; takes the arguments of mfsmount
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Mount {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
        words: Vec<OsString>,
    },
    Demo(demo::Arguments),
    Probe(probe::Arguments),
    Why(why::Arguments),
    /// Print the version
    Version,
}

// The master's own options beside those of every daemon. Spec 71, 1.1.
#[derive(clap::Args)]
struct MasterArguments {
    /// If the folder is a MooseFS master's, take its metadata over there, change logs included, and keep its files in a
    /// folder beside; our own are recovered at every start
    #[arg(short = 'a')]
    restore_automatically: bool,
    /// Accepted and not needed: the start says how far it came
    #[arg(short = 'x', action = clap::ArgAction::Count)]
    restore_verbosely: u8,
    /// Not supported: damaged metadata is refused rather than guessed at
    #[arg(short = 'i')]
    ignore_errors: bool,
    #[command(flatten)]
    decisions: serve::MetadataDecisions,
    #[command(flatten)]
    common: process::Arguments,
}

// A program of MooseFS's name. (No doc comments here: clap would print them as the program's help.)
#[derive(Parser)]
#[command(disable_version_flag = true)]
struct MasterLine {
    #[command(flatten)]
    arguments: MasterArguments,
}

#[derive(Parser)]
#[command(disable_version_flag = true)]
struct DaemonLine {
    #[command(flatten)]
    arguments: process::Arguments,
}

#[derive(Parser)]
struct DumpLine {
    #[command(flatten)]
    arguments: stock::DumpArguments,
}

#[derive(Parser)]
struct RestoreLine {
    #[command(flatten)]
    arguments: stock::restore::Arguments,
}

#[derive(Parser)]
struct StatsLine {
    #[command(flatten)]
    arguments: statsdump::Arguments,
}

#[derive(Parser)]
struct DirectoryLine {
    #[command(flatten)]
    arguments: stock::dirinfo::Arguments,
}

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let called_as = words.next().unwrap_or_default();
    let name = Path::new(&called_as).file_name().unwrap_or_default().to_string_lossy().into_owned();
    match name.as_str() {
        "mfsmaster" => daemon_line::<MasterLine>().map_or_else(|status| status, |line| master(&line.arguments)),
        "mfschunkserver" => {
            daemon_line::<DaemonLine>().map_or_else(|status| status, |line| chunkserver(&line.arguments))
        }
        "mfsmetalogger" => daemon_line::<DaemonLine>().map_or_else(|status| status, |line| metalogger(&line.arguments)),
        "mfsmetadump" => daemon_line::<DumpLine>().map_or_else(|status| status, |line| stock::dump(&line.arguments)),
        "mfsmetarestore" => {
            daemon_line::<RestoreLine>().map_or_else(|status| status, |line| stock::restore::run(&line.arguments))
        }
        "mfsmetadirinfo" => {
            daemon_line::<DirectoryLine>().map_or_else(|status| status, |line| stock::dirinfo::run(&line.arguments))
        }
        "mfsstatsdump" | "mfscsstatsdump" => daemon_line::<StatsLine>()
            .map_or_else(|status| status, |line| statsdump::run(&line.arguments, name == "mfscsstatsdump")),
        "mfsmount" | "mount.moosefs" => mount::main(&words.collect::<Vec<OsString>>(), &name),
        other if other.starts_with("mfs") => not_built(other),
        _ => match Mooring::parse().function {
            Function::Master(arguments) => master(&arguments),
            Function::Chunkserver(arguments) => chunkserver(&arguments),
            Function::Metalogger(arguments) => metalogger(&arguments),
            Function::Promote(arguments) => promote::run(&arguments),
            Function::Import(arguments) => stock::import(&arguments),
            Function::Export(arguments) => stock::export(&arguments),
            Function::Metadump(arguments) => stock::dump(&arguments),
            Function::Metarestore(arguments) => stock::restore::run(&arguments),
            Function::Metadirinfo(arguments) => stock::dirinfo::run(&arguments),
            Function::Statsdump(arguments) => statsdump::run(&arguments, false),
            Function::Mount { words } => mount::main(&words, "mooring mount"),
            Function::Demo(arguments) => demo::run(&arguments),
            Function::Probe(arguments) => probe::run(&arguments),
            Function::Why(arguments) => why::run(&arguments),
            Function::Version => {
                println!("mooring {} (on the wire: MooseFS 3.0.117)", env!("CARGO_PKG_VERSION"));
                ExitCode::SUCCESS
            }
        },
    }
}

/// The command line of a MooseFS daemon: help and mistakes both end with status 1. Spec 71, 1.1.
fn daemon_line<Line: Parser>() -> Result<Line, ExitCode> {
    Line::try_parse().map_err(|error| {
        // Nobody is left to tell if this cannot be printed.
        let _ = error.print();
        ExitCode::FAILURE
    })
}

fn master(arguments: &MasterArguments) -> ExitCode {
    huge::ask_for_huge_pages();
    if arguments.ignore_errors {
        eprintln!("option -i is not supported: damaged metadata is refused rather than guessed at");
        return ExitCode::FAILURE;
    }
    let take_over = arguments.restore_automatically;
    process::run(MASTER, &arguments.common, |daemon| serve::master(daemon, arguments.decisions, take_over))
}

fn chunkserver(arguments: &process::Arguments) -> ExitCode {
    process::run(CHUNKSERVER, arguments, serve::chunkserver)
}

fn metalogger(arguments: &process::Arguments) -> ExitCode {
    process::run(METALOGGER, arguments, serve::metalogger)
}

fn not_built(name: &str) -> ExitCode {
    eprintln!("{name}: Mooring does not have this program yet; MooseFS's own works with a Mooring cluster");
    ExitCode::FAILURE
}
