//! Tuning profiles: settings of a chunkserver for one kind of disk, each with the measurement behind it.
//!
//! `TUNING_PROFILE = ssd` takes the file `tuning/ssd.cfg` of the sources, which is built into the program, so that an
//! installed binary has it; a value with a slash in it is the path of a file of one's own. A profile has the form of
//! `mfschunkserver.cfg`, and what `mfschunkserver.cfg` itself says goes first.

use std::path::{Path, PathBuf};

use crate::config::Config;

const OPTION: &str = "TUNING_PROFILE";

/// The profiles that are built in, by name.
pub const BUILT_IN: [(&str, &str); 3] = [
    ("nvme", include_str!("../../../tuning/nvme.cfg")),
    ("ssd", include_str!("../../../tuning/ssd.cfg")),
    ("hdd", include_str!("../../../tuning/hdd.cfg")),
];

/// Adds what the profile that the configuration names says of options that the configuration does not set.
///
/// Errors: there is no such profile, or it cannot be read; a sentence for the person who wrote the configuration.
pub fn apply(config: &mut Config) -> Result<(), String> {
    let name = config.text(OPTION, "");
    if name.is_empty() {
        return Ok(());
    }
    let profile = if name.contains('/') {
        let path = config.path(OPTION, "");
        let bytes = std::fs::read(&path).map_err(|error| format!("{OPTION} = {name}: {}: {error}", path.display()))?;
        Config::parse(&bytes, &path)
    } else {
        built_in(&name)?
    };
    if profile.optional(OPTION).is_some() {
        return Err(format!("{}: a profile cannot name another one ({OPTION})", profile.source().display()));
    }
    config.add_defaults(&profile);
    Ok(())
}

/// A profile by its name. Errors: there is none; what there is.
pub(crate) fn built_in(name: &str) -> Result<Config, String> {
    let found = BUILT_IN.iter().find(|(known, _)| *known == name);
    let (known, text) = found.ok_or_else(|| {
        let names: Vec<&str> = BUILT_IN.iter().map(|(known, _)| *known).collect();
        format!(
            "{OPTION} = {name}: no such profile in tuning/, which has {}; a file of your own is named by its path, with a \
             slash in it",
            names.join(", ")
        )
    })?;
    let source: PathBuf = Path::new("tuning").join(known).with_extension("cfg");
    Ok(Config::parse(text.as_bytes(), &source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text.as_bytes(), Path::new("test"))
    }

    #[test]
    fn the_configuration_goes_before_its_profile() {
        let mut config = config("TUNING_PROFILE = ssd\nBLOCK_CACHE_MIB = 7\n");
        apply(&mut config).expect("there is that profile");
        assert_eq!(config.text("HDD_IO_MODE", ""), "direct");
        assert_eq!(config.text("BLOCK_CACHE_MIB", ""), "7");
    }

    #[test]
    fn an_unknown_profile_is_an_error_that_names_the_others() {
        let error = apply(&mut config("TUNING_PROFILE = floppy\n")).expect_err("there is none");
        assert!(["floppy", "tuning/", "nvme, ssd, hdd"].iter().all(|part| error.contains(part)), "{error}");
    }

    #[test]
    fn a_profile_may_be_a_file_of_ones_own() {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let path = folder.path().join("mine.cfg");
        let mut ours = config(&format!("TUNING_PROFILE = {}\n", path.display()));
        let error = apply(&mut ours).expect_err("it is not there");
        assert!(error.contains("mine.cfg: No such file"), "{error}");
        std::fs::write(&path, "# mine\nHDD_IO_MODE = dontcache\n").expect("writable");
        apply(&mut ours).expect("it is there");
        assert_eq!(ours.text("HDD_IO_MODE", ""), "dontcache");
        std::fs::write(&path, "TUNING_PROFILE = ssd\n").expect("writable");
        apply(&mut ours).expect_err("profiles do not name profiles");
    }

    #[test]
    fn without_a_profile_nothing_changes() {
        let mut config = config("A = 1\n");
        apply(&mut config).expect("nothing to do");
        assert_eq!(config.values().len(), 1);
    }

    /// Every value has its reason above it, is read by the server, and is taken as it stands.
    #[test]
    fn built_in_profiles_say_why_and_set_what_the_server_reads() {
        for (name, text) in BUILT_IN {
            let lines: Vec<&str> = text.lines().collect();
            let settings = lines.iter().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
            for (number, line) in settings {
                assert!(number > 0 && lines[number - 1].starts_with("# "), "{name}: {line} does not say why");
            }
            let folder = tempfile::tempdir().expect("a scratch folder");
            std::fs::write(folder.path().join("hdd.cfg"), "/disk\n").expect("writable");
            let mut config = config(&format!(
                "TUNING_PROFILE = {name}\nHDD_CONF_FILENAME = {}\n",
                folder.path().join("hdd.cfg").display()
            ));
            apply(&mut config).expect("it is built in");
            super::super::from_config(&config).expect("its values are good ones");
            for name in super::super::READ_AT_THE_START {
                config.optional(name);
            }
            assert_eq!(config.unused(), Vec::<&str>::new(), "{name}");
        }
    }
}
