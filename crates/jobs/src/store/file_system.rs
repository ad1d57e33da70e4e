//! The file systems that a store can be on.
//!
//! The write-ahead log of SQLite keeps its index in memory that all processes share, which needs a file system of this
//! machine. On a file system of several machines two owners could also hold the same lock.

use crate::Error;
use std::path::Path;

/// What a file system is to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileSystem {
    /// It belongs to this machine, as far as is known.
    Local,
    /// Its files are, or may be, on another machine.
    Network(&'static str),
}

/// The numbers of `statfs` (`linux/magic.h`, and `stat.c` of GNU coreutils for those outside the kernel) of file systems
/// whose memory is not shared by all processes that have a file open.
const NETWORK: [(u32, &str); 25] = [
    // Clients of file servers.
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFF53_4D42, "CIFS"),
    (0xFE53_4D42, "SMB2"),
    (0x564C, "NCP"),
    (0x5346_414F, "AFS"),
    (0x6B41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    // Distributed over many servers.
    (0x00C3_6400, "Ceph"),
    (0x0BD0_0BD0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x1983_0326, "BeeGFS"),
    (0xAAD7_AAEA, "PanFS"),
    (0x2003_0528, "OrangeFS"),
    (0x0131_11A8, "IBRIX"),
    (0xBEEF_DEAD, "StorNext"),
    // One disk that several machines write to.
    (0x0116_1970, "GFS2"),
    (0x7461_636F, "OCFS2"),
    (0x6163_6673, "ACFS"),
    // Folders of the host of a virtual machine.
    (0x0102_1997, "9P"),
    (0x786F_4256, "VirtualBox shared folder"),
    (0xBACB_ACBC, "VMware shared folder"),
    (0x7C7C_6673, "Parallels shared folder"),
    // sshfs, GlusterFS, rclone, virtiofs and others have one number.
    (0x6573_5546, "FUSE"),
    (0x6573_5543, "FUSE"),
];

impl FileSystem {
    /// The file system of a number of `statfs`. One that is not in the list counts as local.
    pub(super) fn of(magic: u32) -> Self {
        match NETWORK.iter().find(|(number, _)| *number == magic) {
            Some((_, name)) => Self::Network(name),
            None => Self::Local,
        }
    }
}

/// Refuses a folder on a network file system. A folder that does not exist is on the file system of its parent.
///
/// # Errors
/// It is on one.
pub(super) fn check(folder: &Path) -> Result<(), Error> {
    let absolute = std::path::absolute(folder).map_err(bundle::Error::file("find", folder))?;
    let Some(found) = absolute.ancestors().find_map(|path| rustix::fs::statfs(path).ok()) else {
        return Ok(());
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the number has 32 bits")]
    let magic = found.f_type as u32;
    match FileSystem::of(magic) {
        FileSystem::Local => Ok(()),
        FileSystem::Network(name) => Err(Error::Store {
            folder: folder.to_owned(),
            why: format!(
                "it is on a network file system ({name}), where processes share neither memory nor locks"
            ),
            fix: "choose a folder on a disk of this machine with `store`; outputs may be anywhere".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn network_file_systems_are_refused_and_local_ones_are_not() {
        for (magic, name) in
            [(0x6969, "NFS"), (0xFF53_4D42, "CIFS"), (0x6573_5546, "FUSE"), (0x0102_1997, "9P")]
        {
            assert_eq!(FileSystem::of(magic), FileSystem::Network(name));
        }
        // ext4, xfs, btrfs, zfs, f2fs, bcachefs, tmpfs, overlayfs, ecryptfs, and an unknown one.
        for magic in [
            0xEF53,
            0x5846_5342,
            0x9123_683E,
            0x2FC1_2FC1,
            0xF2F5_2010,
            0xCA45_1A4E,
            0x0102_1994,
            0x794C_7630,
            0xF15F,
            1,
        ] {
            assert_eq!(FileSystem::of(magic), FileSystem::Local, "{magic:#x}");
        }
        let numbers: BTreeSet<u32> = NETWORK.iter().map(|(magic, _)| *magic).collect();
        assert_eq!(numbers.len(), NETWORK.len());
    }

    #[test]
    fn a_folder_that_does_not_exist_is_on_the_file_system_of_its_parent() {
        let parent = tempfile::tempdir().unwrap();
        check(&parent.path().join("a/b/c")).unwrap();
    }
}
