//! Things that are on their way: anyone who wants one that somebody else has asked for already waits for the
//! same.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use backstay_host::clock;

use super::Trouble;

/// One thing on its way.
pub(crate) struct Flight<V> {
    landed: Mutex<Option<Result<V, Trouble>>>,
    changed: Condvar,
}

impl<V: Clone> Flight<V> {
    /// Waits for it; `None` if it has not come by then.
    pub fn wait(&self, until: Instant) -> Option<Result<V, Trouble>> {
        let mut landed = self.landed.lock().unwrap_or_else(PoisonError::into_inner);
        while landed.is_none() {
            let left = until.checked_duration_since(clock::monotonic())?;
            landed =
                self.changed.wait_timeout(landed, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        landed.clone()
    }

    fn has_landed(&self) -> bool {
        self.landed.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// All things of a kind on their way.
pub(crate) struct Flights<K, V>(Mutex<HashMap<K, Arc<Flight<V>>>>);

impl<K: Hash + Eq + Copy, V: Clone> Flights<K, V> {
    pub fn new() -> Self {
        Self(Mutex::default())
    }

    /// The flight of a thing, and whether it is new: then anyone who asked has to see that it lands.
    pub fn join(&self, key: K) -> (Arc<Flight<V>>, bool) {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = false;
        let flight = flights.entry(key).or_insert_with(|| {
            new = true;
            Arc::new(Flight { landed: Mutex::new(None), changed: Condvar::new() })
        });
        (Arc::clone(flight), new)
    }

    /// It is there, or will not come.
    pub fn land(&self, key: K, result: Result<V, Trouble>) {
        let flight = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        if let Some(flight) = flight.filter(|flight| !flight.has_landed()) {
            *flight.landed.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            flight.changed.notify_all();
        }
    }
}
