"""What a simulation leaves on the disk: its state, from which the same call goes on, and its result."""
