"""What compression costs in time and energy, and from which bandwidth on it pays."""
