"""The gallery's database: SQLite, its schema, encryption and checksums."""
