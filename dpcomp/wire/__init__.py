"""What travels, and what both ends remember of it."""
