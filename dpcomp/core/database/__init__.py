"""SQLite files that one process holds, and the locks on them."""
