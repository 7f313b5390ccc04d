"""What compression costs in time and energy."""
