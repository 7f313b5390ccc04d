"""Benchmarks: dpcomp beside its peers and its limits, measured in the same run. `python -m benchmarks --help`."""
