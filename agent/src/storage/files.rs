//! Regular files in a pass: read what may have changed, send what did.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::Statx;
use rustix::io::Errno;
use tranship_proto::tree::{Content, Entry, EntryKind, TreeRecord};

use super::blocks::{Piece, Scan};
use super::digest::FileDigest;
use super::error::StorageError;
use super::objects::{Look, Node, ObjectId, key_of};
use super::pass::Run;
use super::source::Phase;
use super::suspects;
use super::walk::{self, FileKind};

impl Run<'_, '_> {
    pub(super) fn file(
        &mut self,
        dir: BorrowedFd<'_>,
        node: &mut Node,
        stat: &Statx,
    ) -> Result<bool, StorageError> {
        if self.join(node, stat, FileKind::File)? {
            return Ok(true);
        }
        let key = key_of(stat);
        let objects = &self.source.objects;
        let known =
            node.object.filter(|id| objects.get(*id).kind == FileKind::File && objects.get(*id).key == key);
        let suspect = stat.stx_size > 0 && self.source.suspects.contains(&key);
        let trusted = known.is_some_and(|id| !suspect || objects.get(id).flushed);
        if trusted && known.is_some_and(|id| objects.get(id).look(stat) == Look::Same) {
            self.lead(node, stat);
            return Ok(true);
        }
        let fd = match self.source.root.open_file(dir, &node.name) {
            Ok(fd) => fd,
            Err(e) if walk::is_gone(e) => return Ok(false),
            // A device that took the name: the mount does not open devices.
            Err(Errno::ACCESS) if !self.is_file(dir, node) => return Ok(false),
            Err(e) => return Err(self.io("open", e)),
        };
        // Before the look, so that a store that comes after it shows.
        let flushed = suspect && self.phase == Phase::Running && suspects::flush(fd.as_fd());
        let stat = walk::stat_at(fd.as_fd(), b"").map_err(|e| self.io("examine", e))?;
        if key_of(&stat) != key || FileKind::of(&stat) != Some(FileKind::File) {
            return Ok(false);
        }
        let size = stat.stx_size;
        let content = if known.is_some() { Content::Delta } else { Content::Full };
        let Some(entry) = self.entry(dir, node, &stat, EntryKind::File { size, content })? else {
            return Ok(false);
        };
        let sent = self.digest(&entry);
        let id = match known {
            Some(id) => id,
            None => self.fresh(node, FileKind::File, &stat)?,
        };
        let object = self.source.objects.get(id);
        let resized = known.is_none() || object.size() != size;
        let only_metadata = trusted && object.look(&stat) == Look::AccessTime;
        let mut head = Some(entry);
        let mut short = false;
        if !only_metadata {
            if resized && let Some(entry) = head.take() {
                self.out.entry(entry)?;
            }
            short = self.contents(&fd, id, known.is_some(), size, &mut head)?;
        }
        if let Some(mut entry) = head
            && self.source.objects.get(id).sent != sent
        {
            entry.kind = EntryKind::File { size, content: Content::Keep };
            self.out.entry(entry)?;
        }
        self.remember(id, &stat, sent);
        let object = self.source.objects.get_mut(id);
        object.flushed = flushed;
        object.safe &= !short;
        self.lead(node, &stat);
        Ok(true)
    }

    fn is_file(&self, dir: BorrowedFd<'_>, node: &Node) -> bool {
        walk::stat_at(dir, &node.name).is_ok_and(|stat| FileKind::of(&stat) == Some(FileKind::File))
    }

    /// Sends the blocks that differ, after the entry in `head` if that is still to be sent. `true`: the file
    /// shrank.
    fn contents(
        &mut self,
        fd: &OwnedFd,
        id: ObjectId,
        delta: bool,
        size: u64,
        head: &mut Option<Entry>,
    ) -> Result<bool, StorageError> {
        let old = std::mem::take(&mut self.source.objects.get_mut(id).blocks);
        let mut file = FileDigest::new();
        let out = &mut *self.out;
        let scan = Scan {
            fd: fd.as_fd(),
            path: &self.path,
            size,
            old: delta.then_some(&*old),
            key: &self.source.key,
            stop: self.stop,
        };
        let scanned = scan.run(&mut self.source.buffer, &mut |piece| {
            if let Some(entry) = head.take() {
                out.entry(entry)?;
            }
            match piece {
                Piece::Data { offset, bytes } => {
                    file.add(offset, bytes);
                    out.send(TreeRecord::Data { offset, data: bytes.to_vec() })
                }
                Piece::Hole { offset, len } => out.send(TreeRecord::Hole { offset, len }),
            }
        })?;
        if head.is_none() {
            let (digest, sent_bytes) = file.value();
            self.out.send(TreeRecord::FileEnd { digest, sent_bytes })?;
        }
        self.read_bytes += scanned.read;
        self.source.objects.get_mut(id).blocks = scanned.blocks;
        Ok(scanned.short)
    }
}
