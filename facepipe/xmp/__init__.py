"""Names and face regions in XMP: read and written in photos and sidecars, as photo managers do."""
