"""Tasks: what a federation learns. `digits` needs no download; `Classification` makes one of a data set and a model."""

from dpcomp.lab.tasks.classification import Classification as Classification
from dpcomp.lab.tasks.handwritten_digits import SHIPPED_TASKS as SHIPPED_TASKS
from dpcomp.lab.tasks.handwritten_digits import digits as digits
