"""Results of trials: where they lie, how they are written and read, and what made them."""

from dpcomp.lab.results.read import read as read
