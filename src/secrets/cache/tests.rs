//! What is kept over a restart, and what is not.
