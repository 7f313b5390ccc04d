"""Pipeline: a private mechanism and a codec as a single value, with its privacy cost."""

from dpcomp.pipeline.pipeline import Pipeline as Pipeline
from dpcomp.pipeline.table import PARTS as PARTS
