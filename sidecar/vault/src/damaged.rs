//! Points that are known to be damaged, for all hosts: verdicts of anyone who read them back (scrubs, `backstay verify`),
//! which stand beside those of drills.

use std::collections::{BTreeMap, BTreeSet};

use backstay_types::{Classified, CycleNo, DiskId, PointId};

use crate::error::VaultError;
use crate::format::drill::{DrillCheck, DrillRecord};
use crate::read::survey::{Survey, segment_name};
use crate::retain::holder;
use crate::store::{Vault, now_unix_ns};

/// What a verdict's message begins with; then the names of segments, with a comma between them.
const DAMAGED: &str = "damaged segments: ";

/// The message of a verdict on a point that needs these segments.
pub fn damage_message(segments: &BTreeSet<String>, why: &str) -> String {
    if segments.is_empty() {
        return crate::format::drill::shortened(why);
    }
    let names: Vec<&str> = segments.iter().map(String::as_str).collect();
    crate::format::drill::shortened(&format!("{DAMAGED}{}; {why}", names.join(",")))
}

/// What a scrub says of a point, now.
fn scrub_verdict(
    disk: DiskId,
    cycle: CycleNo,
    point: PointId,
    passed: bool,
    message: String,
) -> DrillRecord {
    let now = now_unix_ns();
    DrillRecord {
        drill: uuid::Uuid::new_v4(),
        disk,
        cycle,
        point,
        check: DrillCheck::Scrub,
        passed,
        message,
        by: holder(),
        began_unix_ns: now,
        ended_unix_ns: now,
    }
}

/// What is known of a damaged point.
struct Damage {
    why: String,
    /// It has no verdict of its own: the point, and those of its segments that another's names.
    inferred: Option<(PointId, BTreeSet<String>)>,
}

impl Vault {
    /// The points of a disk that are known to be damaged, and why: those of which a scrub said so and none has said
    /// otherwise since, and newer ones that have the same segments and of which nothing is known.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn damaged_points(&self, disk: DiskId) -> Result<BTreeMap<CycleNo, String>, VaultError> {
        Ok(self.damage(disk)?.into_iter().map(|(cycle, damage)| (cycle, damage.why)).collect())
    }

    /// Gives those of these points a verdict of their own that are only known to be damaged by another's, which is about
    /// to go.
    ///
    /// # Errors
    /// If the vault cannot be read or written.
    pub(crate) fn note_inferred(
        &self,
        disk: DiskId,
        stay: &BTreeSet<CycleNo>,
    ) -> Result<(), VaultError> {
        for (cycle, damage) in self.damage(disk)? {
            if let Some((point, segments)) = damage.inferred.filter(|_| stay.contains(&cycle)) {
                let message = damage_message(&segments, &damage.why);
                self.put_drill(&scrub_verdict(disk, cycle, point, false, message))?;
            }
        }
        Ok(())
    }

    fn damage(&self, disk: DiskId) -> Result<BTreeMap<CycleNo, Damage>, VaultError> {
        // By time: the last one counts.
        let mut last: BTreeMap<(CycleNo, PointId), DrillRecord> = BTreeMap::new();
        for verdict in self.drills(disk)? {
            if verdict.check == DrillCheck::Scrub {
                last.insert((verdict.cycle, verdict.point), verdict);
            }
        }
        let mut segments: BTreeSet<&str> = BTreeSet::new();
        for verdict in last.values().filter(|verdict| !verdict.passed) {
            let names = verdict.message.strip_prefix(DAMAGED).unwrap_or_default();
            let names = names.split(';').next().unwrap_or_default();
            segments.extend(names.split(',').filter(|name| !name.is_empty()));
        }
        let mut damaged = BTreeMap::new();
        let Some(first) = last.values().filter(|verdict| !verdict.passed).map(|v| v.cycle).min()
        else {
            return Ok(damaged);
        };
        for cycle in self.points(disk)?.into_iter().filter(|cycle| *cycle >= first) {
            let point = match self.listed_manifest(disk, cycle) {
                Ok(Some(point)) => point,
                Ok(None) => continue,
                Err(e) if e.is_damage() => {
                    damaged.insert(cycle, Damage { why: e.to_string(), inferred: None });
                    continue;
                }
                Err(e) => return Err(e),
            };
            let verdict = last.get(&(cycle, point.point));
            match verdict {
                Some(verdict) if verdict.passed => {}
                Some(verdict) => {
                    // An empty list, as earlier versions wrote it, says nothing.
                    let why =
                        verdict.message.strip_prefix(DAMAGED).and_then(|m| m.strip_prefix("; "));
                    let why = why.unwrap_or(&verdict.message).to_owned();
                    damaged.insert(cycle, Damage { why, inferred: None });
                }
                None => {
                    let names = point.segments.iter().map(|segment| segment_name(disk, segment));
                    let names: BTreeSet<String> =
                        names.filter(|name| segments.contains(name.as_str())).collect();
                    if !names.is_empty() {
                        let why = "it has segments that a scrub found damaged, and was not read back since";
                        let inferred = Some((point.point, names));
                        damaged.insert(cycle, Damage { why: why.into(), inferred });
                    }
                }
            }
        }
        Ok(damaged)
    }

    /// Writes down for every host what reading these points back found: which are damaged, and which are whole although
    /// somebody found them damaged before. What is known already is not written again.
    ///
    /// # Errors
    /// If the vault cannot be read or written.
    pub fn note_survey(
        &self,
        disk: DiskId,
        points: &[CycleNo],
        found: &Survey,
    ) -> Result<(), VaultError> {
        let names = found.segments.iter().map(|bad| segment_name(disk, &bad.segment)).collect();
        let before = self.damaged_points(disk)?;
        for &cycle in points {
            let damage = found.damaged.get(&cycle);
            if damage.is_some() == before.contains_key(&cycle) {
                continue;
            }
            let Ok(Some(point)) = self.listed_manifest(disk, cycle) else { continue };
            let message = match damage {
                Some(e) => damage_message(&names, &e.to_string()),
                None => "all that it needs was read back".into(),
            };
            let passed = damage.is_none();
            self.put_drill(&scrub_verdict(disk, cycle, point.point, passed, message))?;
        }
        Ok(())
    }

    /// Refuses a point that nobody named if it is known to be damaged: who says `latest` wants one that is whole.
    ///
    /// # Errors
    /// [`VaultError::PointDamaged`], with the newest one that is not known to be damaged; or the vault cannot be read.
    pub fn refuse_damaged(&self, disk: DiskId, cycle: CycleNo) -> Result<(), VaultError> {
        let mut damaged = self.damaged_points(disk)?;
        let Some(why) = damaged.remove(&cycle) else { return Ok(()) };
        let whole =
            self.points(disk)?.into_iter().filter(|c| *c < cycle && !damaged.contains_key(c)).max();
        Err(VaultError::PointDamaged { cycle, why, whole })
    }
}
