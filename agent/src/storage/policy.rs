//! What a receiving host accepts in a tree.

/// A device node that may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllowedDevice {
    /// Block device; character device otherwise.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// Character devices every container may have: the ones of the OCI runtime specification (null, zero, full,
/// random, urandom, tty, console, ptmx), and 0:0, which is no device but the mark of a deleted name on
/// overlayfs.
pub const DEFAULT_DEVICES: [(u32, u32); 9] =
    [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (0, 0)];

/// Limits and permissions of one tree.
#[derive(Debug, Clone)]
pub struct StorePolicy {
    /// Most names at a time, without the root. Leave room: a renamed directory exists twice for a while.
    pub max_entries: u64,
    /// Most bytes allocated on disk.
    pub max_bytes: u64,
    /// Device nodes allowed in addition to [`DEFAULT_DEVICES`].
    pub devices: Vec<AllowedDevice>,
}

impl Default for StorePolicy {
    fn default() -> Self {
        Self { max_entries: 10_000_000, max_bytes: u64::MAX, devices: Vec::new() }
    }
}

impl StorePolicy {
    /// Whether a device node may be made.
    pub fn allows(&self, block: bool, major: u32, minor: u32) -> bool {
        (!block && DEFAULT_DEVICES.contains(&(major, minor)))
            || self.devices.contains(&AllowedDevice { block, major, minor })
    }
}
