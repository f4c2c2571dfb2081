//! Bulk streams at the destination: images into memory, passes into their trees.

use crate::memory::receive::{Received, receive_images};
use crate::storage::{StorePolicy, TreeStore};
use crate::transport::bulk::{BulkReader, Record};
use quinn::RecvStream;
use std::path::PathBuf;
use tokio::sync::{Mutex, oneshot, watch};
use tranship_proto::bulk::RecordKind;
use tranship_proto::codec;
use tranship_proto::status::{Failure, Reason, Side};
use tranship_proto::tree::{TreeMeta, TreeRecord};

fn failed(text: String) -> Failure {
    Failure::new(Reason::Failed, Side::Destination, text)
}

/// What could not be received, with what to do when there was no room for it.
pub(super) fn not_received(what: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    let f = failed(format!("cannot receive {what}: {}", crate::chain(error)));
    let full = |e: &(dyn std::error::Error + 'static)| {
        e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::StorageFull)
    };
    match std::iter::successors(Some(error), |e| e.source()).any(full) {
        true => f.hint("make room at the destination: `df -h` says which file system is full"),
        false => f,
    }
}

/// Records of a bulk stream, until this migration is given up.
pub(super) fn reader(recv: RecvStream, given_up: watch::Receiver<bool>) -> Result<BulkReader, Failure> {
    BulkReader::start(recv, given_up).map_err(|e| failed(format!("cannot start a decompressor: {e}")))
}

/// One tree being received.
pub(super) struct Receiving {
    path: PathBuf,
    policy: StorePolicy,
    // Absent while a pass is applied, and after one has failed.
    store: Mutex<Option<TreeStore>>,
}

impl Receiving {
    /// Into an empty directory.
    pub(super) fn create(path: PathBuf, policy: StorePolicy) -> Result<Self, Failure> {
        let store = TreeStore::create(&path, policy.clone())
            .map_err(|e| failed(format!("cannot receive into {}: {}", path.display(), crate::chain(&e))))?;
        Ok(Self { path, policy, store: Mutex::new(Some(store)) })
    }

    /// Applies one pass. Passes of one tree come one after the other.
    pub(super) async fn pass(
        &self,
        pass: u32,
        recv: RecvStream,
        given_up: watch::Receiver<bool>,
    ) -> Result<(), Failure> {
        let mut slot = self.store.lock().await;
        let Some(mut store) = slot.take() else {
            return Err(failed(format!("an earlier pass into {} has failed", self.path.display())));
        };
        if store.finished_pass().unwrap_or(0) + 1 != pass {
            return Err(failed(format!("pass {pass} into {} is out of order", self.path.display())));
        }
        let mut reader = reader(recv, given_up)?;
        let applied = tokio::task::spawn_blocking(move || -> Result<TreeStore, String> {
            while let Some(Record { kind, meta, data }) = reader.read().map_err(|e| crate::chain(&e))? {
                if kind != RecordKind::Tree {
                    return Err("an image record among files".into());
                }
                let meta: TreeMeta = codec::decode("TreeMeta", &meta).map_err(|e| e.to_string())?;
                let record = TreeRecord::join(meta, data).map_err(|e| e.to_string())?;
                store.apply(record).map_err(|e| crate::chain(&e))?;
            }
            if store.finished_pass() != Some(pass) {
                return Err(crate::chain(&reader.cut()));
            }
            Ok(store)
        })
        .await
        .map_err(|e| failed(format!("receiving files panicked: {e}")))?;
        let store = applied.map_err(|why| {
            failed(format!("cannot receive files into {}: {why}", self.path.display())).hint(format!(
                "at most {} and {} entries are taken",
                super::super::source::bytes(self.policy.max_bytes),
                self.policy.max_entries
            ))
        })?;
        *slot = Some(store);
        Ok(())
    }

    /// Ends the tree after `pass`; verifies that it was the last one applied.
    pub(super) async fn seal(&self, pass: u32) -> Result<(), Failure> {
        let store = self.store.lock().await.take();
        let Some(store) = store.filter(|s| s.finished_pass() == Some(pass)) else {
            return Err(failed(format!("pass {pass} into {} did not arrive whole", self.path.display())));
        };
        tokio::task::spawn_blocking(move || store.seal(false))
            .await
            .map_err(|e| failed(format!("sealing files panicked: {e}")))?
            .map(|_| ())
            .map_err(|e| failed(format!("cannot finish {}: {}", self.path.display(), crate::chain(&e))))
    }

    /// Last pass applied.
    pub(super) async fn finished(&self) -> u32 {
        self.store.lock().await.as_ref().and_then(TreeStore::finished_pass).unwrap_or(0)
    }
}

/// The file that a runtime wants to see before it starts CRIU: what the standard streams were.
const DESCRIPTORS: &str = "descriptors.json";

/// Takes the images of a dump into `dir`. `described` is told when the runtime can be started for them.
pub(super) async fn images(
    recv: RecvStream,
    dir: PathBuf,
    limit: u64,
    given_up: watch::Receiver<bool>,
    described: oneshot::Sender<()>,
) -> Result<Received, Failure> {
    let mut reader = reader(recv, given_up)?;
    let mut described = Some(described);
    let came = move |name: &str| {
        if let Some(described) = described.take_if(|_| name == DESCRIPTORS) {
            let _ = described.send(());
        }
    };
    tokio::task::spawn_blocking(move || receive_images(&mut reader, &dir, limit, came))
        .await
        .map_err(|e| failed(format!("receiving images panicked: {e}")))?
        .map_err(|e| not_received("memory", &e))
}
