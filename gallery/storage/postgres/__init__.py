"""A gallery's tables in a schema of a PostgreSQL database. Needs the [postgres] extra."""
