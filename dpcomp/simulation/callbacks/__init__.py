"""Callbacks of a simulation: what is called as it starts, after each round, and as it ends."""

from dpcomp.simulation.callbacks.callback import Callback as Callback
from dpcomp.simulation.callbacks.callback import RunInProgress as RunInProgress
from dpcomp.simulation.callbacks.mlflow_log import MLflow as MLflow
from dpcomp.simulation.callbacks.stop_early import StopEarly as StopEarly
from dpcomp.simulation.callbacks.tensorboard_log import TensorBoard as TensorBoard
from dpcomp.simulation.callbacks.wandb_log import WeightsAndBiases as WeightsAndBiases
