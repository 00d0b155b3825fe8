//! Something small that was fetched a moment ago and will be wanted again, bounded by its weight.

use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

/// Values by key; when they weigh too much, the one that was not asked for longest goes.
pub struct Recent<K, V> {
    weight_max: usize,
    held: Mutex<Held<K, V>>,
}

struct Held<K, V> {
    values: LruCache<K, Weighed<V>>,
    weight: usize,
}

struct Weighed<V> {
    value: Arc<V>,
    weight: usize,
}

impl<K: Eq + Hash, V> Recent<K, V> {
    /// Holds values of this weight in all.
    #[must_use]
    pub fn new(weight_max: usize) -> Self {
        Self { weight_max, held: Mutex::new(Held { values: LruCache::unbounded(), weight: 0 }) }
    }

    /// The value of a key, if it is still here.
    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        self.held().values.get(key).map(|held| Arc::clone(&held.value))
    }

    /// Keeps a value. One that weighs more than all may is not kept.
    pub fn put(&self, key: K, value: impl Into<Arc<V>>, weight: usize) -> Arc<V> {
        let value = value.into();
        if weight > self.weight_max {
            return value;
        }
        let mut held = self.held();
        held.weight += weight;
        let before = held.values.put(key, Weighed { value: Arc::clone(&value), weight });
        held.weight -= before.map_or(0, |before| before.weight);
        while held.weight > self.weight_max
            && let Some((_, gone)) = held.values.pop_lru()
        {
            held.weight -= gone.weight;
        }
        value
    }

    /// Keeps the value of a key no longer.
    pub fn forget(&self, key: &K) {
        let mut held = self.held();
        let gone = held.values.pop(key);
        held.weight -= gone.map_or(0, |gone| gone.weight);
    }

    fn held(&self) -> MutexGuard<'_, Held<K, V>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
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
        assert_eq!(recent.get(&0).as_deref(), Some(&0));
        recent.put(3, 30, 10);
        recent.put(4, 40, 31);
        let there: Vec<i32> = (0..5).filter(|&key| recent.get(&key).is_some()).collect();
        assert_eq!(there, [0, 2, 3]);
        recent.put(2, 21, 5);
        assert_eq!(recent.get(&2).as_deref(), Some(&21));
        recent.forget(&2);
        assert_eq!(recent.get(&2), None);
        recent.put(5, 50, 10);
        assert!(
            [0, 3, 5].iter().all(|key| recent.get(key).is_some()),
            "what was forgotten weighs nothing"
        );
    }
}
