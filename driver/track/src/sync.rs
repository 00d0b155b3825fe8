//! Locks and atomics: the standard library's, or those of the schedule explorer in model tests.

#[cfg(not(feature = "shuttle"))]
pub use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic,
};

#[cfg(feature = "shuttle")]
pub use shuttle::sync::{
    Arc, Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic,
};

/// Takes a lock even if another thread panicked with it: what it guards is written in an order
/// that is safe at every step, and a stopped guest would be worse.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Enters a gate together with others; poison is ignored as in [`lock`].
pub fn shared<T>(gate: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    gate.read().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Enters a gate alone; poison is ignored as in [`lock`].
pub fn alone<T>(gate: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    gate.write().unwrap_or_else(|poisoned| poisoned.into_inner())
}
