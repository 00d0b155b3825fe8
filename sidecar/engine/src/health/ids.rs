//! The ids of all causes: one list, so that none can be used that is not documented.
//!
//! docs/reference/operations.md has a line for each; a test compares the two. An id is kebab-case, says what is
//! wrong, and never changes: monitoring depends on it.

use serde::Serialize;

/// The id of a cause; only those of this file exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct CauseId(&'static str);

impl CauseId {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

impl std::fmt::Display for CauseId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $id:literal;)*) => {
        $($(#[$doc])* pub const $name: CauseId = CauseId($id);)*
        /// All of them.
        pub const ALL: &[CauseId] = &[$($name),*];
    };
}

ids! {
    // The driver (driver.rs).
    /// No driver serves the disk.
    NOT_SERVED = "not-served";
    /// The driver died under its users.
    DRIVER_DIED = "driver-died";
    /// A driver is at work and does not answer.
    DRIVER_SILENT = "driver-silent";
    /// Changes go on that are not tracked.
    NOT_TRACKED = "not-tracked";
    /// Users of the disk wait for its backing, which answers nothing.
    BACKING_HANGS = "backing-hangs";
    /// Users of the disk got errors from its backing.
    GUEST_ERRORS = "guest-errors";
    /// The driver says what is wrong.
    DRIVER_WARNING = "driver-warning";

    // The backing (backing.rs).
    /// The backing is not what the disk is served from any more.
    BACKING_FAULT = "backing-fault";
    /// The backing device is larger than the disk.
    BACKING_EXTENDED = "backing-extended";

    // Cycles (cycle.rs).
    /// A cycle failed so that only a person can mend it.
    CYCLE_STOPPED = "cycle-stopped";
    /// Another host has taken the disk over.
    FENCED = "fenced";
    /// A cycle failed and is tried again.
    CYCLE_FAILED = "cycle-failed";
    /// The last point is less than was asked for.
    POINT_WARNING = "point-warning";
    /// There is no point yet.
    NO_POINT = "no-point";
    /// The newest point is too old.
    POINT_LATE = "point-late";

    // The vault (vault.rs).
    /// There is no vault where the disk's points are.
    VAULT_GONE = "vault-gone";
    /// Another vault is where the disk's points are.
    OTHER_VAULT = "other-vault";
    /// A vault was set for the disk, and its points are in another one.
    VAULT_SETTING = "vault-setting-ignored";
    /// The default vault was changed, and the disk's points are in the one before.
    VAULT_DEFAULT_CHANGED = "vault-default-changed";
    /// Which vault the disk's points are in cannot be told.
    VAULT_UNKNOWN = "vault-unknown";
    /// The vault is on the physical disk that holds the backing.
    VAULT_SAME_DISK = "vault-on-same-disk";
    /// The vault is on this host.
    VAULT_THIS_HOST = "vault-on-this-host";

    /// The vault has not answered for some time, while something waits for it.
    VAULT_SILENT = "vault-silent";
    /// The store refuses what is asked of it.
    STORE_REFUSED = "store-refused";
    /// The recovery points that were made are not there any more.
    POINTS_VANISHED = "points-vanished";
    /// Something in the vault is damaged.
    VAULT_DAMAGED = "vault-damaged";
    /// Points could not be read back.
    SCRUB_FAILED = "scrub-failed";
    // What this host remembers of the disk (records.rs).
    /// A record of the disk is damaged or cannot be read.
    RECORD_UNREADABLE = "record-unreadable";

    // The clock (clock.rs).
    /// This host's clock jumped.
    CLOCK_JUMPED = "clock-jumped";
    /// Nothing confirms this host's clock.
    CLOCK_UNTRUSTED = "clock-untrusted";
    /// The newest point is dated after now.
    POINT_FROM_THE_FUTURE = "point-from-the-future";

    // The host (host.rs).
    /// No sidecar makes points.
    SIDECAR_NOT_RUNNING = "sidecar-not-running";
    /// There is a sidecar, and it does nothing.
    SIDECAR_SILENT = "sidecar-silent";
    /// Whether there is a sidecar could not be found out.
    SIDECAR_UNKNOWN = "sidecar-unknown";
    /// The state directory is full or nearly so.
    STATE_FULL = "state-full";
    /// The state directory of a disk that is served is gone.
    STATE_GONE = "state-gone";
    /// The runtime directory is full.
    RUNTIME_FULL = "runtime-full";
    /// The state directory cannot be written.
    STATE_READ_ONLY = "state-read-only";

    // Upkeep, keys, drills, each in its file.
    /// The vault cannot be looked after.
    UPKEEP_FAILED = "upkeep-failed";
    /// A recovery point is held, and no list of the vault shows the hold.
    HOLD_NOT_LISTED = "hold-not-listed";
    /// The keys of the vault.
    KEYS = "keys";
    /// A drill failed or could not be made.
    DRILL = "drill";

    // Failovers, replicas and certificates (found by anyone who knows of them).
    /// The disk was handed over: another host may serve it. No fault.
    HANDED_OVER = "handed-over";
    /// A failover or failback was begun and not finished.
    FAILOVER_UNFINISHED = "failover-unfinished";
    /// Blocks of a mounted point that are not here yet cannot be read.
    POINT_UNREACHABLE = "point-unreachable";
    /// A replica does not follow until a person acts.
    REPLICA_STOPPED = "replica-stopped";
    /// A replica's last step failed and is tried again.
    REPLICA_FAILED = "replica-failed";
    /// A process follows the vault, and does nothing.
    REPLICA_SILENT = "replica-silent";
    /// No process follows the vault.
    REPLICA_NOT_RUNNING = "replica-not-running";
    /// A certificate of this host ends soon or has ended.
    CERTIFICATE = "certificate";
}
