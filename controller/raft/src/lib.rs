//! A SQLite database replicated by Raft.
