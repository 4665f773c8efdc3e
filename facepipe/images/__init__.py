"""Photos in and out: found, read, cut and drawn on."""
