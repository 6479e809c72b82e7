//! Storage classes: how many copies of a chunk there shall be, and where. Spec 41, 7.1; 32, 32.10.

/// What a server's labels must hold to take a copy: up to four sets of labels, one of which is enough; all of a set
/// are needed (bit n is label 'A' + n). The list ends at the first empty set; an empty list fits every server.
pub type LabelSets = [u32; 4];

/// Classes 1 to 9 are the simple goals: that many copies, anywhere.
pub const SIMPLE_GOAL_MAX: u8 = 9;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageClass {
    pub name: Vec<u8>,
    /// Only sessions with the admin flag may give it to nodes.
    pub admin_only: bool,
    /// 0 LOOSE, 1 STD, 2 STRICT.
    pub mode: u8,
    /// Days after ctime from which `arch` applies; 0 = never.
    pub arch_delay_days: u16,
    /// One entry per copy while a chunk is written, 1 to 9.
    pub create: Vec<LabelSets>,
    /// One entry per copy afterwards.
    pub keep: Vec<LabelSets>,
    /// One entry per copy of an archived chunk.
    pub arch: Vec<LabelSets>,
}

impl StorageClass {
    /// The class that stands for a plain number of copies.
    pub fn simple_goal(copies: u8) -> StorageClass {
        let anywhere = vec![[0; 4]; usize::from(copies)];
        StorageClass {
            name: copies.to_string().into_bytes(),
            admin_only: false,
            mode: 1,
            arch_delay_days: 0,
            create: anywhere.clone(),
            keep: anywhere.clone(),
            arch: anywhere,
        }
    }

    /// Copies that a chunk may come to have: the larger of keep and arch.
    pub fn copies_max(&self) -> u8 {
        self.keep.len().max(self.arch.len()) as u8
    }

    /// True while the class only says a number of copies, so that old clients can be told of it as a goal.
    pub fn is_simple(&self) -> bool {
        let anywhere = |sets: &[LabelSets]| sets.len() == self.keep.len() && sets.iter().all(|set| set[0] == 0);
        anywhere(&self.create) && anywhere(&self.keep) && anywhere(&self.arch)
    }
}

/// All classes by id. 1 to 9 always exist.
#[derive(Clone, Debug)]
pub(crate) struct Classes {
    by_id: Vec<Option<StorageClass>>,
}

impl Classes {
    pub(crate) fn new() -> Classes {
        let mut by_id = vec![None; 256];
        for goal in 1..=SIMPLE_GOAL_MAX {
            by_id[usize::from(goal)] = Some(StorageClass::simple_goal(goal));
        }
        Classes { by_id }
    }

    pub(crate) fn get(&self, id: u8) -> Option<&StorageClass> {
        self.by_id[usize::from(id)].as_ref()
    }

    pub(crate) fn set(&mut self, id: u8, class: Option<StorageClass>) {
        self.by_id[usize::from(id)] = class;
    }

    pub(crate) fn by_name(&self, name: &[u8]) -> Option<u8> {
        self.iter().find(|(_, class)| class.name == name).map(|(id, _)| id)
    }

    pub(crate) fn lowest_free(&self) -> Option<u8> {
        (1..=255).find(|id| self.get(*id).is_none())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u8, &StorageClass)> {
        (0..=255u8).zip(&self.by_id).filter_map(|(id, class)| class.as_ref().map(|class| (id, class)))
    }

    /// Copies that chunks of this class may come to have; 0 for no class.
    pub(crate) fn copies_max(&self, id: u8) -> u8 {
        self.get(id).map_or(0, StorageClass::copies_max)
    }
}
