//! What was put is what the store has.
//!
//! Something on the way may change what it carries (a proxy, a controller, memory), and a point that names such an
//! object is lost. So nothing counts as put before it is proven, whatever kind of object it is:
//!
//! - by the store's own digest of what it took, where its answer has one (an `ETag` that is the MD5 of the bytes, or of
//!   the MD5s of the parts): this costs no request;
//! - otherwise by reading it back, from a directory past the page cache;
//! - behind a gateway by the gateway, which checks what arrives and proves what it puts.
//!
//! What is not what was put is deleted and put again. Why it is done so, and what it costs, is in
//! docs/decisions/0019-proof-and-scrub.md.

use md5::{Digest, Md5};
use object_store::PutPayload;

use crate::error::VaultError;
use crate::format::key::ObjectKey;
use crate::objects::same;
use crate::store::Vault;
use crate::stores::Steps;

/// How often something is put whose proof fails.
pub(crate) const PUTS_MAX: u32 = 3;
/// Bytes that are read back with one request.
const STEP_BYTES: u64 = 8 << 20;

/// Whether a store's digest says that it took these bytes. One that does not may be no digest of them at all (of what the
/// store encrypted, say): then it proves nothing either way.
fn digest_says(e_tag: &str, parts: &[PutPayload]) -> bool {
    let e_tag = e_tag.trim_start_matches("W/").trim_matches('"');
    let (digest, count) = e_tag.split_once('-').map_or((e_tag, None), |(d, n)| (d, Some(n)));
    if digest.len() != 32 || !digest.bytes().all(|b| b.is_ascii_hexdigit()) {
        return false;
    }
    let of = |payload: &PutPayload| {
        let mut md5 = Md5::new();
        payload.iter().for_each(|bytes| md5.update(bytes));
        md5.finalize()
    };
    let ours = match (count, parts) {
        (None, [whole]) => of(whole),
        (Some(n), parts) if n.parse() == Ok(parts.len()) => {
            let mut md5 = Md5::new();
            parts.iter().for_each(|part| md5.update(of(part)));
            md5.finalize()
        }
        _ => return false,
    };
    let ours: String = ours.iter().map(|byte| format!("{byte:02x}")).collect();
    ours.eq_ignore_ascii_case(digest)
}

impl Vault {
    /// Whether the store has what was put under a name, in one part or several.
    ///
    /// # Errors
    /// If it cannot be read back; then nobody knows.
    pub(crate) fn has_exactly(
        &self,
        key: &ObjectKey,
        parts: &[PutPayload],
        e_tag: Option<&str>,
    ) -> Result<bool, VaultError> {
        if self.is_behind_gateway() || e_tag.is_some_and(|e_tag| digest_says(e_tag, parts)) {
            return Ok(true);
        }
        if let [small] = parts
            && !self.is_local()
            && small.content_length() as u64 <= STEP_BYTES
        {
            return self.is_exactly(key, small);
        }
        let mut bytes = parts.iter().flat_map(|part| part.iter().cloned().map(Ok));
        self.inner.store.reads_back(self, key, &mut bytes)
    }

    /// The same of a small object, with one request.
    fn is_exactly(&self, key: &ObjectKey, payload: &PutPayload) -> Result<bool, VaultError> {
        for read in 0.. {
            match self.get(key, payload.content_length()) {
                Ok(there) if same(&there, payload) => return Ok(true),
                Ok(_) | Err(VaultError::NotFound { .. } | VaultError::Inconsistent { .. }) => {}
                Err(e) => return Err(e),
            }
            if !self.again(read) {
                break;
            }
        }
        Ok(false)
    }

    /// Whether an object reads back as these bytes. What does not is read again before that is believed.
    ///
    /// # Errors
    /// If it cannot be read, or `wanted` cannot.
    pub(crate) fn reads_back_by_ranges(
        &self,
        key: &ObjectKey,
        wanted: Steps<'_>,
    ) -> Result<bool, VaultError> {
        let of_io = |e| VaultError::of_io(key, e);
        let mut at = 0;
        for bytes in wanted {
            let mut bytes = bytes.map_err(of_io)?;
            while !bytes.is_empty() {
                let some = bytes.split_to(bytes.len().min(STEP_BYTES as usize));
                let mut same = false;
                for read in 0.. {
                    let there = self.get_range(key, at, some.len() as u64);
                    same = match there {
                        Err(VaultError::NotFound { .. } | VaultError::Inconsistent { .. }) => false,
                        there => there? == some,
                    };
                    if same || !self.again(read) {
                        break;
                    }
                }
                if !same {
                    return Ok(false);
                }
                at += some.len() as u64;
            }
        }
        match self.len(key) {
            Ok(len) => Ok(len == at),
            Err(VaultError::NotFound { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_says_what_was_taken() {
        let part = |bytes: &'static [u8]| PutPayload::from_static(bytes);
        let one = [part(b"hello")];
        assert!(digest_says("\"5d41402abc4b2a76b9719d911017c592\"", &one));
        assert!(digest_says("5D41402ABC4B2A76B9719D911017C592", &one));
        assert!(!digest_says("\"5d41402abc4b2a76b9719d911017c593\"", &one));
        let two = [part(b"hello"), part(b"world")];
        assert!(digest_says(&format!("\"{}-2\"", multi()), &two));
        for nothing in
            ["", "0x8DCAFE", "x-2", "\"5d41402abc4b2a76b9719d911017c592-1\"", "1700000000"]
        {
            assert!(!digest_says(nothing, &two), "{nothing}");
        }
    }

    fn multi() -> String {
        let digests = [&b"hello"[..], b"world"].map(Md5::digest).concat();
        Md5::digest(digests).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
