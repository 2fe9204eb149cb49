//! New settings beside running sessions: what appears, what drains, what stays.
