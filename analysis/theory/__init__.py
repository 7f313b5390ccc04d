"""Closed forms, and Monte Carlo runs that they are held against."""
