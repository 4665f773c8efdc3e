"""A gallery's tables in an SQLite file: its log, its schema versions, and what is read of a damaged one."""
