"""Measures of rankings, supports and payloads: correlation, overlap, captured energy, efficiency, and bits by part."""
