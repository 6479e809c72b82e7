//! Files that a master has: those of the tree, which stay, and those that jobs make, rename and remove.

use wire::{Inode, Name};

/// Folders for the files that jobs make.
const MADE_FOLDERS: usize = 64;

/// Files `0..files.len()` in folders of `per_folder`; each name has 19 letters.
pub struct Tree {
    /// Those of the tree, then those for made files.
    pub folders: Vec<Inode>,
    pub per_folder: usize,
    pub files: Vec<Inode>,
}

impl Tree {
    pub fn new(files: usize, per_folder: usize) -> Tree {
        let folders = vec![Inode(0); files.div_ceil(per_folder) + MADE_FOLDERS];
        Tree { folders, per_folder, files: vec![Inode(0); files] }
    }

    /// How many folders hold the tree's own files.
    pub fn own_folders(&self) -> usize {
        self.folders.len() - MADE_FOLDERS
    }

    pub fn folder_name(number: usize) -> Name {
        name(b'd', number as u64)
    }

    /// Where file `number` is.
    pub fn place(&self, number: usize) -> (Inode, Name) {
        (self.folders[number / self.per_folder], name(b'f', number as u64))
    }

    /// Where a made file is: in none of the tree's own folders. A thousand in a row share one.
    pub fn place_of(&self, made: Made) -> (Inode, Name) {
        let folder = (usize::from(made.connection) * 7 + made.number as usize / 1000) % MADE_FOLDERS;
        let number = u64::from(made.generation) << 48 | u64::from(made.connection) << 32 | u64::from(made.number);
        (self.folders[self.own_folders() + folder], name(made.letter, number))
    }
}

/// A file that a job made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// Which of the jobs.
    pub generation: u16,
    pub connection: u16,
    pub number: u32,
    /// The name's first letter: renaming changes it.
    pub letter: u8,
}

/// A letter and 18 hexadecimal digits.
fn name(letter: u8, number: u64) -> Name {
    let mut name = [letter; 19];
    for (place, digit) in name[1..].iter_mut().rev().enumerate() {
        *digit = if place < 16 { b"0123456789abcdef"[(number >> (place * 4)) as usize & 15] } else { b'0' };
    }
    Name::new(&name).expect("19 letters are a name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_19_letters_and_differ() {
        let mut tree = Tree::new(2500, 1000);
        assert_eq!(tree.own_folders(), 3);
        tree.folders = (5..).take(tree.folders.len()).map(Inode).collect();
        let (folder, first) = tree.place(2400);
        assert_eq!((folder, first.as_bytes()), (Inode(7), b"f000000000000000960".as_slice()));
        let made = Made { generation: 1, connection: 2, number: 3, letter: b'm' };
        let (folder, name) = tree.place_of(made);
        assert_eq!((folder, name.as_bytes()), (Inode(8 + 14), b"m000001000200000003".as_slice()));
    }
}
