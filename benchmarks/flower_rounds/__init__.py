"""Rounds of Flower with dpcomp and without: `python benchmarks/flower_rounds` in processes that talk TLS."""
