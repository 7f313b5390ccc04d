"""Results of trials: written, read, and compared."""
