//! Why a vault did not do what was asked, by what the caller can do about it.

use backstay_format::FormatError;
use backstay_types::{ByteLen, Class, Classified, CycleNo, DiskId, DiskName, SectorRange, Term};

use crate::encrypt::sign::NotSigned;
use crate::format::key::{Folder, ObjectKey, Piece};
use crate::local::Planted;
use crate::remote::permanent_error::{PermanentError, is_full, refusal};

/// Why a vault did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The URL names no vault this program can reach.
    #[error("vault {url}: {reason}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no vault, and this host has never met one there.
    #[error(
        "there is no vault at {url}. Check the URL, and that its file system is mounted. To make a new \
         vault there: backstay vault init --vault {url}"
    )]
    NoVault {
        /// The URL.
        url: String,
    },
    /// There is no vault where this host knows one.
    #[error(
        "there is no vault at {url} now, and this host knows vault {known} there. Is its file system \
         mounted, does its bucket still have its objects? Nothing was copied or changed. If that vault is \
         lost and a new one is to take its place: backstay vault init --vault {url} --replace-missing"
    )]
    VaultGone {
        /// The URL.
        url: String,
        /// The vault that is meant.
        known: uuid::Uuid,
    },
    /// Another vault is where this host knows one.
    #[error(
        "the vault at {url} is {found}, and this host knows vault {known} there. Is the right file system \
         mounted? Nothing was copied or changed. If the vault that is there now is meant: backstay vault \
         accept --vault {url}"
    )]
    OtherVault {
        /// The URL.
        url: String,
        /// The vault that is meant.
        known: uuid::Uuid,
        /// The vault that is there.
        found: uuid::Uuid,
    },
    /// A vault was to be made where one is.
    #[error("there is a vault at {url} already; nothing was changed")]
    VaultExists {
        /// The URL.
        url: String,
    },
    /// The store cannot do what a vault needs; nothing was begun in it.
    #[error("vault {url}: this store cannot hold a vault: {reason}")]
    Unfit {
        /// The vault.
        url: String,
        /// What it cannot do.
        reason: String,
    },
    /// It is encrypted, and nothing this host has opens it.
    #[error("vault {url} is encrypted: {reason}")]
    Locked {
        /// The vault.
        url: String,
        /// Why it did not open.
        reason: String,
    },
    /// This host has a writer's key: it cannot read what it did not write itself, since it was started.
    #[error(
        "vault {object} cannot be read here: this host has a writer's key, which seals and does not \
         open. Do this where the vault's key is"
    )]
    WriteOnly {
        /// The vault, or an object in it.
        object: String,
    },
    /// There is no such object.
    #[error("vault: {object} is not there")]
    NotFound {
        /// Its key.
        object: String,
    },
    /// The store could not be reached or failed; it may work later.
    #[error("vault: {object}: {source}")]
    Store {
        /// The key.
        object: String,
        /// What the store answered.
        source: object_store::Error,
    },
    /// There is no room.
    #[error("vault: {object}: no space left; free some or give the vault more")]
    Full {
        /// The key.
        object: String,
    },
    /// Segments cannot be merged: the merged ones are put before the old ones may go.
    #[error(
        "vault {url}: there is no room to merge segments: up to {bytes} bytes are needed while that is done, {}. What \
         nothing needs any more was deleted before ({points} recovery points, {freed} bytes of segments). Give the \
         vault that much room, or keep fewer points: backstay prune NAME --no-merge --keep RULES; nothing is lost, and \
         cycles go on as far as there is room",
        free.map_or_else(|| "how many are free is not known".into(), |free| format!("{free} are free"))
    )]
    NoRoomToMerge {
        /// The vault.
        url: String,
        /// The room that is needed at most.
        bytes: ByteLen,
        /// The room that there is, if that can be told.
        free: Option<ByteLen>,
        /// Points that were deleted before.
        points: u64,
        /// Bytes of segments that were deleted before.
        freed: ByteLen,
    },
    /// The store does not let us.
    #[error("vault: {object}: permission denied: {why}")]
    Denied {
        /// The key.
        object: String,
        /// The store's own words, or what to check.
        why: String,
    },
    /// What the store has is not what was put. It was deleted; nothing refers to it.
    #[error(
        "vault: {object}: the store has other bytes than were put ({tries} times): something between this host \
         and the vault changes what it carries. Nothing refers to it; it is tried again"
    )]
    Altered {
        /// The key.
        object: String,
        /// How often it was put.
        tries: u32,
    },
    /// The vault had recovery points of this disk, and has none any more.
    #[error(
        "the vault has no recovery point of disk {disk} any more, though {known} was made: somebody deleted them, \
         or this is not the whole vault. Nothing was shipped. If the vault can be brought back (its backup, \
         backstay vault undelete), do that; if they are lost for good, ship all of the disk again: backstay resync {disk} --now --the-disk-is-right"
    )]
    PointsVanished {
        /// The disk's name.
        disk: String,
        /// The newest point that is known to have been there.
        known: CycleNo,
    },
    /// An object is not what it should be.
    #[error("vault: {object} is damaged: {source}")]
    Damaged {
        /// The key.
        object: String,
        /// What is wrong with it.
        source: FormatError,
    },
    /// An object that nobody signed who may: nothing it says was believed.
    #[error(
        "vault: {object} does not count: {source}. See docs/reference/encryption.md, Forged objects"
    )]
    Forged {
        /// The key.
        object: String,
        /// What is wrong with its signature.
        source: NotSigned,
    },
    /// An object contradicts another one.
    #[error("vault: {object} is damaged: {reason}")]
    Inconsistent {
        /// The key.
        object: String,
        /// How.
        reason: String,
    },
    /// A segment holds sectors outside of the bounds that its point says it has.
    #[error(
        "vault: {object} is damaged: it holds sectors within {span}, and the point that names it says that it \
         reaches less far: anyone who read these sectors by that point got older ones"
    )]
    OutOfBounds {
        /// The key.
        object: String,
        /// From its first sector to its last.
        span: SectorRange,
    },
    /// I7: what arrived is not what had to move.
    #[error(
        "{range} {problem}: the cycle was not committed and its sectors ship with the next one"
    )]
    Missed {
        /// The first run that differs.
        range: SectorRange,
        /// Whether it is missing or too much.
        problem: &'static str,
    },
    /// A segment that this cycle put is not there.
    #[error(
        "vault: {object} was put by this cycle and is not there (a gateway that was stopped has it, \
         or somebody deleted it): the cycle was not committed and its sectors ship with the next one"
    )]
    Lost {
        /// Its key.
        object: String,
    },
    /// I5: another writer has taken over this disk.
    #[error(
        "term {ours} of this disk is over: term {newest} belongs to {writer}. The disk was failed \
         over; this source must not ship any more"
    )]
    Fenced {
        /// The term we write in.
        ours: Term,
        /// The newest.
        newest: Term,
        /// Whose that is.
        writer: String,
    },
    /// I5: somebody else committed this cycle.
    #[error("recovery point {0} was committed by another writer; this cycle was not committed")]
    LostRace(CycleNo),
    /// It was told to stop before all of it was put or fetched.
    #[error("vault: {object}: stopped before it was done")]
    Stopped {
        /// The key.
        object: String,
    },
    /// The newest point is known to be damaged, and nobody named it.
    #[error(
        "recovery point {cycle} is damaged ({why}). {}. To use the damaged one all the same, name it by its number. \
         Nothing was changed",
        whole.map_or("No older point is known to be whole".into(), |whole| format!(
            "The newest one that is not known to be damaged is {whole}: to use it, pass --point {whole}"
        ))
    )]
    PointDamaged {
        /// The point.
        cycle: CycleNo,
        /// What is wrong with it.
        why: String,
        /// The newest older one that is not known to be damaged.
        whole: Option<CycleNo>,
    },
    /// Retention has deleted this point, or is about to.
    #[error(
        "recovery point {0} was deleted by the rules of retention a moment ago; pick another one \
         (see backstay points), and pin what must stay"
    )]
    Retired(CycleNo),
    /// A hold of this name is there and is somebody else's.
    #[error("a hold named {name} is there already: {what}; use another name, or remove it first")]
    HoldTaken {
        /// The name.
        name: String,
        /// What it holds.
        what: String,
    },
    /// Others maintain this disk at the same time and were always faster.
    #[error(
        "disk {disk} is being maintained by somebody else at the same time; nothing was lost, try \
         again later"
    )]
    Contended {
        /// The disk.
        disk: backstay_types::DiskId,
    },
    /// Maintenance was told to stop. What it did is done, the rest comes next time.
    #[error("maintenance was stopped; the rest is done next time")]
    MaintenanceStopped,
    /// Another disk has this name.
    #[error("vault: the name {name} belongs to disk {disk}; choose another one")]
    NameTaken {
        /// The name.
        name: DiskName,
        /// Whose it is.
        disk: DiskId,
    },
    /// The disk has another name now.
    #[error("vault: disk {name} was renamed: it is {to} now; use that name")]
    Renamed {
        /// The name asked for.
        name: DiskName,
        /// The name it has.
        to: DiskName,
    },
    /// The place to restore to failed.
    #[error("{what}: {source}")]
    Target {
        /// What was being done, and where.
        what: String,
        /// What the system answered.
        source: std::io::Error,
    },
}

impl Classified for VaultError {
    fn class(&self) -> Class {
        match self {
            Self::Store { source, .. } if is_mendable(source) || is_refused(source) => {
                Class::Person
            }
            Self::Store { .. }
            | Self::Altered { .. }
            | Self::Full { .. }
            | Self::NoRoomToMerge { .. }
            | Self::LostRace(_)
            | Self::Missed { .. }
            | Self::Lost { .. }
            | Self::Stopped { .. }
            | Self::Contended { .. }
            | Self::MaintenanceStopped
            | Self::VaultGone { .. } => Class::Retry,
            Self::OtherVault { .. } | Self::VaultExists { .. } | Self::NameTaken { .. } => {
                Class::Refused
            }
            Self::Denied { .. }
            | Self::Unfit { .. }
            | Self::Retired(_)
            | Self::NoVault { .. }
            | Self::HoldTaken { .. }
            | Self::Url { .. }
            | Self::PointsVanished { .. }
            | Self::Locked { .. }
            | Self::WriteOnly { .. }
            | Self::NotFound { .. }
            | Self::Fenced { .. }
            | Self::Renamed { .. }
            | Self::Target { .. } => Class::Person,
            Self::Damaged { .. }
            | Self::Forged { .. }
            | Self::Inconsistent { .. }
            | Self::OutOfBounds { .. }
            | Self::PointDamaged { .. } => Class::Damaged,
        }
    }

    fn may_pass(&self) -> bool {
        match self {
            // What a store refuses it may do when somebody has mended it: told by type.
            Self::Store { source, .. } if is_mendable(source) => true,
            Self::Denied { .. } | Self::Unfit { .. } => true,
            // The file system may be mounted again: looking costs nothing, and nothing is written.
            Self::OtherVault { .. } => true,
            _ => self.class() == Class::Retry,
        }
    }
}

impl VaultError {
    /// Whether there is no vault at the URL.
    #[must_use]
    pub fn is_no_vault(&self) -> bool {
        matches!(self, Self::NoVault { .. } | Self::VaultGone { .. })
    }

    /// The key of a damaged object that is written once and that nothing makes again: the vault's record, a disk's,
    /// or a document of a name.
    #[must_use]
    pub fn damaged_document(&self) -> Option<&str> {
        let (Self::Damaged { object, .. }
        | Self::Forged { object, .. }
        | Self::Inconsistent { object, .. }) = self
        else {
            return None;
        };
        let once = match ObjectKey::parse(object) {
            Some(key) => matches!(
                key,
                ObjectKey::Vault | ObjectKey::Name(..) | ObjectKey::Disk(_, Piece::Record)
            ),
            None => matches!(Folder::parse(object), Some(Folder::NamesOf(_))),
        };
        once.then_some(object)
    }

    /// Whether something that was in the vault is damaged or gone.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        self.is_damage() || matches!(self, Self::NotFound { .. } | Self::Lost { .. })
    }

    /// Whether an object of that name is there already.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        use object_store::Error::AlreadyExists;
        matches!(self, Self::Store { source: AlreadyExists { .. }, .. })
    }

    pub(crate) fn of_io(object: impl Into<String>, source: std::io::Error) -> Self {
        Self::of_store(
            object,
            object_store::Error::Generic { store: "local directory", source: source.into() },
        )
    }

    pub(crate) fn of_store(object: impl Into<String>, source: object_store::Error) -> Self {
        use object_store::Error as E;
        let object = object.into();
        match source {
            E::NotFound { .. } => Self::NotFound { object },
            E::PermissionDenied { source, .. } | E::Unauthenticated { source, .. } => {
                Self::Denied { object, why: source.to_string() }
            }
            source => match refusal(&source) {
                Some(PermanentError::Answer { status, said }) if is_full(*status, said) => {
                    Self::Full { object }
                }
                Some(refused @ PermanentError::Answer { status: 401 | 403, .. })
                    if !is_gateways(&source) =>
                {
                    Self::Denied { object, why: refused.to_string() }
                }
                Some(_) => Self::Store { object, source },
                None => Self::of_kind(object, source),
            },
        }
    }

    /// What the system says of a directory.
    fn of_kind(object: String, source: object_store::Error) -> Self {
        use std::io::ErrorKind as K;
        // No put of ours makes it: what belongs there is not there.
        if let Some(planted) = planted(&source) {
            return Self::Inconsistent { object, reason: planted.to_string() };
        }
        match io_kind(&source) {
            Some(K::StorageFull | K::QuotaExceeded) => Self::Full { object },
            Some(K::PermissionDenied) => Self::Denied { object, why: OF_DIRECTORY.into() },
            Some(K::ReadOnlyFilesystem) => {
                let why = "its file system is mounted read-only; see the kernel's log for why";
                Self::Denied { object, why: why.into() }
            }
            _ => Self::Store { object, source },
        }
    }
}

/// What to look at where a directory does not let us in.
pub(crate) const OF_DIRECTORY: &str = "check the vault's owner and mode";

/// Whether a store refused for a reason that shows by itself when somebody has mended it. A certificate that one side does not
/// accept, or that a gateway has revoked, is not tried again and again.
fn is_mendable(error: &object_store::Error) -> bool {
    matches!(refusal(error), Some(PermanentError::Answer { .. })) && !is_gateways(error)
}

/// Whether a gateway of ours answered.
fn is_gateways(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::Generic { store: "gateway", .. })
}

/// Whether a store will never do what was asked.
fn is_refused(error: &object_store::Error) -> bool {
    use object_store::Error as E;
    let by_library = matches!(
        error,
        E::NotSupported { .. }
            | E::NotImplemented { .. }
            | E::InvalidPath { .. }
            | E::UnknownConfigurationKey { .. }
    );
    by_library || refusal(error).is_some()
}

/// The link or device that stands where a vault's directory should have an object.
fn planted<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Planted> {
    let io = std::iter::successors(Some(error), |error| error.source())
        .find_map(|error| error.downcast_ref::<std::io::Error>());
    io?.get_ref()?.downcast_ref::<Planted>()
}

/// The I/O error at the bottom of a store's error.
fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<std::io::ErrorKind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        next = error.source();
    }
    None
}

/// Adds the object's key to a format error.
pub(crate) trait In<T> {
    fn within(self, object: impl Into<String>) -> Result<T, VaultError>;
}

impl<T> In<T> for Result<T, FormatError> {
    fn within(self, object: impl Into<String>) -> Result<T, VaultError> {
        self.map_err(|source| VaultError::Damaged { object: object.into(), source })
    }
}
