"""Tasks that need no download."""
