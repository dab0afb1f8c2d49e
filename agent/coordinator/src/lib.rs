//! Where a task runs.
