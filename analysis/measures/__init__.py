"""Measures of vectors, supports and payloads."""
