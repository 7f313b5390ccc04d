"""The clients of a simulation: which of them take part in a round, what is kept of each, and how they train."""
