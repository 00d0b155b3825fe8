//! Something small that was fetched a moment ago and will be wanted again, bounded by bytes.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Values by key; when they weigh too much, the one that was not asked for longest goes.
pub(crate) struct Recent<K, V> {
    most_bytes: usize,
    held: Mutex<Held<K, V>>,
}

struct Held<K, V> {
    values: HashMap<K, Entry<V>>,
    bytes: usize,
    asked: u64,
}

struct Entry<V> {
    value: Arc<V>,
    bytes: usize,
    asked: u64,
}

impl<K: Copy + Eq + Hash, V> Recent<K, V> {
    pub fn new(most_bytes: usize) -> Self {
        let held = Held { values: HashMap::new(), bytes: 0, asked: 0 };
        Self { most_bytes, held: Mutex::new(held) }
    }

    pub fn get(&self, key: K) -> Option<Arc<V>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.asked += 1;
        let asked = held.asked;
        let entry = held.values.get_mut(&key)?;
        entry.asked = asked;
        Some(Arc::clone(&entry.value))
    }

    /// Keeps a value. One that is larger than all may be is not kept.
    pub fn put(&self, key: K, value: V, bytes: usize) -> Arc<V> {
        let value = Arc::new(value);
        if bytes > self.most_bytes {
            return value;
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.asked += 1;
        let asked = held.asked;
        let entry = Entry { value: Arc::clone(&value), bytes, asked };
        held.bytes += bytes;
        if let Some(before) = held.values.insert(key, entry) {
            held.bytes -= before.bytes;
        }
        while held.bytes > self.most_bytes {
            let oldest = held.values.iter().min_by_key(|(_, entry)| entry.asked);
            let Some(oldest) = oldest.map(|(&key, _)| key) else { break };
            if let Some(gone) = held.values.remove(&oldest) {
                held.bytes -= gone.bytes;
            }
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_asked_for_longest_goes() {
        let recent = Recent::new(30);
        for key in 0..3 {
            recent.put(key, key * 10, 10);
        }
        assert_eq!(recent.get(0).as_deref(), Some(&0));
        recent.put(3, 30, 10);
        recent.put(4, 40, 31);
        let there: Vec<i32> = (0..5).filter(|&key| recent.get(key).is_some()).collect();
        assert_eq!(there, [0, 2, 3]);
        recent.put(2, 21, 5);
        assert_eq!(recent.get(2).as_deref(), Some(&21));
    }
}
