"""The commands: each calls one library function and renders its answer."""
