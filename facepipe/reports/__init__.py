"""Results as files: records, pictures, HTML pages, XMP sidecars."""
