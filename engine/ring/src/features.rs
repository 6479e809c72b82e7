//! Which features of the kernel's ring are used, where the kernel has them.
//!
//! All are on. They can be switched off one by one to be measured (`bench/RESULTS.md`, which also says what was tried and
//! left out), and to find out which one is to blame when a kernel misbehaves. What the kernel lacks is not used, whatever
//! is asked for here.

/// Features of io_uring. Nothing here matters to the other drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// The pool's buffers are made known once, not page by page with every read and write of a file (Linux 5.19).
    pub registered_buffers: bool,
    /// Completions are run when we ask for them, and by nobody else (Linux 6.1).
    pub defer_taskrun: bool,
    /// If they are not deferred: they are run when we enter the kernel anyway, without interrupting us (Linux 5.19).
    pub coop_taskrun: bool,
}

impl Default for Features {
    fn default() -> Features {
        Features { registered_buffers: true, defer_taskrun: true, coop_taskrun: true }
    }
}

impl Features {
    /// The names, as `changed` takes them.
    pub const NAMES: [&'static str; 3] = ["registered_buffers", "defer_taskrun", "coop_taskrun"];

    /// These features with changes: words with blanks or commas between them, `-NAME` for one that is not to be used,
    /// `+NAME` or `NAME` for one that is. Gives also the words that name none.
    pub fn changed(mut self, words: &str) -> (Features, Vec<String>) {
        let mut unknown = Vec::new();
        for word in words.split([' ', '\t', ',']).filter(|word| !word.is_empty()) {
            let (name, wanted) = match word.strip_prefix('-') {
                Some(name) => (name, false),
                None => (word.strip_prefix('+').unwrap_or(word), true),
            };
            match self.by_name(&name.to_ascii_lowercase()) {
                Some(feature) => *feature = wanted,
                None => unknown.push(word.to_owned()),
            }
        }
        (self, unknown)
    }

    fn by_name(&mut self, name: &str) -> Option<&mut bool> {
        Some(match name {
            "registered_buffers" => &mut self.registered_buffers,
            "defer_taskrun" => &mut self.defer_taskrun,
            "coop_taskrun" => &mut self.coop_taskrun,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_switched_by_name_and_unknown_names_are_given_back() {
        let (changed, unknown) =
            Features::default().changed("-registered_buffers, -Defer_Taskrun  +coop_taskrun -sqpoll");
        let expected = Features { registered_buffers: false, defer_taskrun: false, ..Features::default() };
        assert_eq!((changed, unknown), (expected, vec!["-sqpoll".to_owned()]));
        assert_eq!(changed.changed("registered_buffers +defer_taskrun").0, Features::default());
        assert_eq!(Features::default().changed(" ,\t").0, Features::default());
    }

    #[test]
    fn every_name_switches_one_feature() {
        for name in Features::NAMES {
            let (changed, unknown) = Features::default().changed(&format!("-{name}"));
            assert!(unknown.is_empty() && changed != Features::default(), "{name}");
        }
    }
}
