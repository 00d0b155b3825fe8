//! From the log to the target, without the vault.

use std::io;
use std::sync::atomic::AtomicBool;

use backstay_format::FormatError;
use backstay_types::{ByteLen, ByteOffset};

use super::error::{ReplicaError, io_error, on};
use super::log::{self, LogError, LogHeader};
use super::record::{LogRef, PointRef, Seed, Standing};
use super::{Doing, Moved, Replica, Watch};

/// Records applied between two steps of a test.
const RECORDS_A_STEP: u64 = 16;

impl Replica {
    /// The target is written: it is at a point once that is durable.
    pub(super) fn arrive(&mut self, point: PointRef) -> Result<(), ReplicaError> {
        self.target.sync().map_err(on("making durable", self.target.path()))?;
        self.limits.seam.step("target synced")?;
        let mtime_unix_ns = self.target.mtime()?;
        self.set(Standing::At { point, mtime_unix_ns })?;
        self.limits.seam.step("arrived")?;
        self.record.tidy(&self.dir);
        Ok(())
    }

    pub(super) fn resize(&self, size: ByteLen) -> Result<(), ReplicaError> {
        self.target.resize(size).map_err(on("changing the size of", self.target.path()))
    }

    /// Brings the target to a whole point with what is on this host, if there is anything to do.
    ///
    /// # Errors
    /// If the target fails, or the log is damaged; nothing of a damaged log is written.
    pub fn finish(&mut self) -> Result<Moved, ReplicaError> {
        let never = AtomicBool::new(false);
        let watch = Watch { progress: &|_, _, _| {}, stop: &never };
        let mut moved = Moved::default();
        self.finish_with(watch, &mut moved)?;
        Ok(moved)
    }

    pub(super) fn finish_with(
        &mut self,
        watch: Watch<'_>,
        moved: &mut Moved,
    ) -> Result<(), ReplicaError> {
        let seam = self.limits.seam.clone();
        if let Standing::Ready { from, to, log } = self.record.standing.clone() {
            if let Err(e) = self.check(&log, &to).and_then(|()| self.reserve(&log, &to)) {
                // Not a byte of the target was written; taking space may have changed its times.
                if let Some(point) = from {
                    self.arrive(point)?;
                }
                return Err(e);
            }
            seam.step("reserved")?;
            self.set(Standing::Applying { from, to, log })?;
            seam.step("applying")?;
        }
        let Standing::Applying { to, log, .. } = self.record.standing.clone() else {
            return Ok(());
        };
        if let Err(e) = self.check(&log, &to) {
            if matches!(e, ReplicaError::Log { .. }) {
                // What it would have written is not known any more.
                self.set(Standing::Seeding { to, how: Seed::Compare, seen: 0 })?;
                self.record.tidy(&self.dir);
            }
            return Err(e);
        }
        self.resize(to.size_bytes)?;
        seam.step("resized")?;
        moved.written.0 += self.apply(&log, &to, watch)?;
        seam.step("written")?;
        self.arrive(to)
    }

    /// Checks all of a log.
    fn check(&self, log: &LogRef, to: &PointRef) -> Result<(), ReplicaError> {
        self.each_record(log, to, |_, _| Ok(()))
    }

    /// Takes the space on the target that the data in a log needs.
    pub(super) fn reserve(&self, log: &LogRef, to: &PointRef) -> Result<(), ReplicaError> {
        let mut open: Option<(u64, u64)> = None;
        let take = |run: Option<(u64, u64)>| match run {
            Some((at, end)) => self
                .target
                .reserve(ByteOffset(at), ByteLen(end - at))
                .map_err(on("taking space on", self.target.path())),
            None => Ok(()),
        };
        self.each_record(log, to, |record, _| {
            let (at, end) = (record.offset.0, record.offset.0 + record.len.0);
            match &mut open {
                _ if !record.data => {}
                Some(run) if run.1 == at => run.1 = end,
                _ => take(open.replace((at, end)))?,
            }
            Ok(())
        })?;
        take(open)
    }

    /// Writes what a log says; the bytes written.
    fn apply(&self, log: &LogRef, to: &PointRef, watch: Watch<'_>) -> Result<u64, ReplicaError> {
        let (mut written, mut records, mut read) = (0, 0u64, 0);
        self.each_record(log, to, |record, data| {
            let done = match record.data {
                true => self.target.write_at(data, record.offset),
                false => self.target.zero(record.offset, record.len),
            };
            done.map_err(on("writing", self.target.path()))?;
            written += record.len.0;
            records += 1;
            read += data.len() as u64;
            (watch.progress)(Doing::Applying, read, log.bytes);
            match records % RECORDS_A_STEP {
                1 => self.limits.seam.step("record written"),
                _ => Ok(()),
            }
        })?;
        Ok(written)
    }

    fn each_record(
        &self,
        log: &LogRef,
        to: &PointRef,
        each: impl FnMut(&log::Record, &[u8]) -> Result<(), ReplicaError>,
    ) -> Result<(), ReplicaError> {
        let path = self.dir.join(&log.file);
        let header = LogHeader::of(self.record.disk, to);
        let input = match log::open(&self.dir, log) {
            Ok(input) => input,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let reason = "it is gone".into();
                let source = FormatError::Text { what: "redo log", reason };
                return Err(ReplicaError::Log { path, source });
            }
            Err(e) => return Err(on("reading", &path)(e)),
        };
        log::read(input, (&header, log), to.size_bytes, each).map_err(|e| match e {
            LogError::Format(source) => ReplicaError::Log { path: path.clone(), source },
            LogError::Io(e) => io_error(format!("reading {}", path.display()))(e),
            LogError::Apply(e) => e,
        })
    }
}
