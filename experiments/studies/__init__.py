"""Studies on recorded updates."""
