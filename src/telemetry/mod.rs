//! (head)

pub mod settings;
