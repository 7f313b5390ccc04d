"""The speed of dpcomp, part by part: each module measures the rows of one or more benchmarks."""
