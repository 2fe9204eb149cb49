//! The variables that this process was started with, and the values that were taken out of them.
//!
//! `take` moves a value into locked memory and overwrites it where it stood, so that `/proc/PID/environ`, a core dump and the children
//! that inherit the environment show the name alone. What was taken stays readable here, for as long as the process lives: there is no
//! second place to read it from. A leaf: it knows nothing of what a variable is for.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStringExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::memory;
use crate::secret::Secret;

/// The value of a variable, taken out of the environment if it still stands there. `None` when the process has no such variable.
///
/// The first call for a name is best made before the process has a second thread.
pub fn take(name: &str) -> Option<Secret> {
    let mut taken = taken();
    if let Some(value) = taken.get(name) {
        return Some(Secret::copy_from(value.expose()));
    }
    let value = Secret::new(std::env::var_os(name)?.into_vec());
    memory::wipe_variable(name);
    let copy = Secret::copy_from(value.expose());
    taken.insert(name.to_owned(), value);
    Some(copy)
}

/// The value of a variable as text, left where it is. `None` when there is none, or it is not UTF-8.
pub fn text(name: &str) -> Option<String> {
    match taken().get(name) {
        Some(value) => value.expose_str().map(str::to_owned),
        None => std::env::var(name).ok(),
    }
}

fn taken() -> MutexGuard<'static, BTreeMap<String, Secret>> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

static TAKEN: Mutex<BTreeMap<String, Secret>> = Mutex::new(BTreeMap::new());
