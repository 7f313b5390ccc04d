"""Training of a client's model: the seam that `simulate` uses, and a folder for each framework behind it."""

from dpcomp.training.metrics import MeasuresBySums as MeasuresBySums
from dpcomp.training.metrics import MeasuresWhole as MeasuresWhole
from dpcomp.training.schedule import Cosine as Cosine
from dpcomp.training.schedule import Schedule as Schedule
from dpcomp.training.trainer import CohortTrainer as CohortTrainer
from dpcomp.training.trainer import CountsExamples as CountsExamples
from dpcomp.training.trainer import Federation as Federation
from dpcomp.training.trainer import HoldsOut as HoldsOut
from dpcomp.training.trainer import LocalWork as LocalWork
from dpcomp.training.trainer import ParallelTrainer as ParallelTrainer
from dpcomp.training.trainer import Trainer as Trainer
from dpcomp.training.trainer import TrainerConfig as TrainerConfig
