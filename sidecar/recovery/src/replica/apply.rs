//! From the log to the target, without the vault.

use std::io;
use std::sync::atomic::AtomicBool;

use backstay_format::FormatError;
use backstay_format::unfinished::{UnfinishedRestore, Writer};
use backstay_front::backing::half_written::first_block;
use backstay_host::clock::now_unix_ns;
use backstay_types::{ByteLen, ByteOffset};

use super::error::{ReplicaError, io_error, on};
use super::log::{self, LogError, LogHeader};
use super::record::{LogRef, PointRef, ReplicaState, Seed};
use super::{Activity, Moved, Replica, Watch};

/// Records applied between two steps of a test.
const RECORDS_A_STEP: u64 = 16;

impl Replica {
    /// The target is written: it is at a point once that is durable.
    pub(super) fn arrive(&mut self, point: PointRef) -> Result<(), ReplicaError> {
        self.target.sync().map_err(on("making durable", self.target.path()))?;
        self.limits.seam.step("target synced")?;
        let mtime_unix_ns = self.target.mtime()?;
        self.set(ReplicaState::At { point, mtime_unix_ns })?;
        self.limits.seam.step("arrived")?;
        self.record.tidy(&self.dir);
        Ok(())
    }

    /// Marks the target: what it holds is no point until [`Target::complete`](super::Target::complete).
    pub(super) fn mark(&self, point: &PointRef) -> Result<(), ReplicaError> {
        let mark = UnfinishedRestore {
            writer: Writer::Replica,
            disk: self.record.disk,
            name: self.record.name.clone(),
            cycle: point.cycle,
            point: point.point,
            size: point.size_bytes,
            started_unix_ns: now_unix_ns(),
        };
        self.target.mark(&mark).map_err(on("marking", self.target.path()))
    }

    pub(super) fn complete(&self) -> Result<(), ReplicaError> {
        self.target.complete().map_err(on("writing the first block of", self.target.path()))
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
        if let ReplicaState::Ready { from, to, log } = self.record.standing.clone() {
            if let Err(e) = self.check(&log, &to).and_then(|_| self.reserve(&log, &to)) {
                // Not a byte of the target was written; taking space may have changed its times.
                if let Some(point) = from {
                    self.arrive(point)?;
                }
                return Err(e);
            }
            seam.step("reserved")?;
            self.set(ReplicaState::Applying { from, to, log })?;
            seam.step("applying")?;
        }
        let ReplicaState::Applying { to, log, .. } = self.record.standing.clone() else {
            return Ok(());
        };
        let has_first_block = match self.check(&log, &to) {
            Ok(has) => has,
            Err(e) => {
                if matches!(e, ReplicaError::Log { .. }) {
                    // What it would have written is not known any more.
                    self.set(ReplicaState::Seeding { to, how: Seed::Compare, seen: 0 })?;
                    self.record.tidy(&self.dir);
                }
                return Err(e);
            }
        };
        self.resize(to.size_bytes)?;
        seam.step("resized")?;
        // One of an earlier version cannot put back what the mark stands in place of.
        if has_first_block {
            self.mark(&to)?;
            seam.step("marked")?;
        }
        moved.written.0 += self.apply(&log, &to, has_first_block, watch)?;
        seam.step("written")?;
        self.complete()?;
        seam.step("completed")?;
        self.arrive(to)
    }

    /// Checks all of a log; whether it has the whole first block in one record, as those have that are made now.
    fn check(&self, log: &LogRef, to: &PointRef) -> Result<bool, ReplicaError> {
        let first = first_block(to.size_bytes);
        let mut has = false;
        self.each_record(log, to, |record, _| {
            has |= record.offset.0 == 0 && record.len.0 >= first;
            Ok(())
        })?;
        Ok(has)
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
    fn apply(
        &self,
        log: &LogRef,
        to: &PointRef,
        has_first_block: bool,
        watch: Watch<'_>,
    ) -> Result<u64, ReplicaError> {
        let (mut written, mut records, mut read) = (0, 0u64, 0);
        self.each_record(log, to, |record, data| {
            let done = match record.data {
                true => self.target.write_at(data, record.offset),
                false => self.target.zero(record.offset, record.len),
            };
            done.map_err(on("writing", self.target.path()))?;
            // The first block as it was is no change.
            if records > 0 || !has_first_block {
                written += record.len.0;
            }
            records += 1;
            read += data.len() as u64;
            (watch.progress)(Activity::Applying, read, log.bytes);
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
        log::read(input, &header, log, to.size_bytes, each).map_err(|e| match e {
            LogError::Format(source) => ReplicaError::Log { path: path.clone(), source },
            LogError::Io(e) => io_error(format!("reading {}", path.display()))(e),
            LogError::Apply(e) => e,
        })
    }
}
