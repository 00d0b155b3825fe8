//! Group points in a vault.
//!
//! A group point names recovery points that are in the vault already: each is looked up before the
//! group point is put, so anyone who reported it need not be believed.

use backstay_types::PointId;

use crate::error::{In, VaultError};
use crate::format::group::{GroupMember, GroupName, GroupPoint, GroupPointNo};
use crate::format::key::{Folder, ObjectKey, Piece};
use crate::store::{Vault, now_unix_ns};

/// How often the next number is tried when others put group points at the same time.
const TRIES: u32 = 16;

/// The key of a group point.
fn group_point_key(group: &GroupName, number: GroupPointNo) -> ObjectKey {
    ObjectKey::GroupPoint(group.clone(), number.0)
}

/// The number after one.
fn next_number(group: &GroupName, number: GroupPointNo) -> Result<GroupPointNo, VaultError> {
    number.0.checked_add(1).map(GroupPointNo).ok_or_else(|| VaultError::Inconsistent {
        object: group_point_key(group, number).into(),
        reason: "no group has that many points: remove it".into(),
    })
}

impl Vault {
    /// The names of all groups that have points.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn groups(&self) -> Result<Vec<GroupName>, VaultError> {
        let folders = self.folders(&Folder::Groups)?.into_iter();
        let mut groups: Vec<GroupName> = folders
            .filter_map(|folder| match folder {
                Folder::Group(group) => Some(group),
                _ => None,
            })
            .collect();
        groups.sort();
        Ok(groups)
    }

    /// The numbers of all points of a group, oldest first.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn group_points(&self, group: &GroupName) -> Result<Vec<GroupPointNo>, VaultError> {
        let numbers = self.numbers(&Folder::GroupPoints(group.clone()))?;
        Ok(numbers.into_iter().map(GroupPointNo).collect())
    }

    /// A point of a group.
    ///
    /// # Errors
    /// If there is none, or it is damaged or not what its name says.
    pub fn group_point(
        &self,
        group: &GroupName,
        number: GroupPointNo,
    ) -> Result<GroupPoint, VaultError> {
        let key = group_point_key(group, number);
        let point: GroupPoint = self.document(&key)?;
        point.check().within(&key)?;
        Ok(point)
    }

    /// Commits a group point: from now on it exists.
    ///
    /// # Errors
    /// If a member's recovery point is not in this vault, or the vault cannot be read or written.
    /// The group point does not exist then; the members' points stay as they are.
    pub fn commit_group(
        &self,
        group: &GroupName,
        mut members: Vec<GroupMember>,
        cut_unix_ns: u64,
    ) -> Result<GroupPoint, VaultError> {
        members.sort_by_key(|member| member.disk);
        for member in &members {
            if !self.points(member.disk)?.contains(&member.cycle) {
                let object = Piece::Point(member.cycle).of(member.disk).into();
                return Err(VaultError::NotFound { object });
            }
            let there = self.manifest(member.disk, member.cycle)?;
            if there.point != member.point {
                return Err(VaultError::Inconsistent {
                    object: Piece::Point(member.cycle).of(member.disk).into(),
                    reason: format!("it is point {}, not {}", there.point, member.point),
                });
            }
        }
        let last = self.group_points(group)?.last().copied().unwrap_or_default();
        let mut point = GroupPoint {
            group: group.clone(),
            number: last,
            point: PointId::random(),
            cut_unix_ns,
            committed_unix_ns: now_unix_ns(),
            members,
        };
        let mut tries = 0;
        loop {
            point.number = next_number(group, point.number)?;
            tries += 1;
            let key = group_point_key(group, point.number);
            point.check().within(&key)?;
            match self.put_document(&key, &point) {
                Ok(()) => return Ok(point),
                // A put whose answer was lost may have been done, and sent again it finds itself.
                Err(_) if self.is_our_group_point(&point, &key) => return Ok(point),
                Err(VaultError::Store {
                    source: object_store::Error::AlreadyExists { .. },
                    ..
                }) if tries < TRIES => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Deletes a group point; its members' points stay.
    pub(crate) fn delete_group_point(
        &self,
        group: &GroupName,
        number: GroupPointNo,
    ) -> Result<(), VaultError> {
        self.delete(&group_point_key(group, number))
    }

    fn is_our_group_point(&self, point: &GroupPoint, key: &ObjectKey) -> bool {
        let there = self.group_point(&point.group, point.number);
        there.is_ok_and(|there| there == *point) && self.settle(key).is_ok()
    }
}
