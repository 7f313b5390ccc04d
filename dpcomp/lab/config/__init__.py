"""An experiment as a TOML file."""
