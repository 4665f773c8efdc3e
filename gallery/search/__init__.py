"""How the nearest people are found, by the home of a gallery: an index of its own, or one in the server."""
