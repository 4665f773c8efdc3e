"""What the command line says: each command calls one library function and renders its answer."""
