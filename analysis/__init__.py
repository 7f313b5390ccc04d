"""Reads results and explains them; trains nothing."""
