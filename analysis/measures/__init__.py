"""Measures of supports and payloads: overlap, captured energy, efficiency, and what a payload spends its bits on."""
