"""Simulation of a federation on one machine: real clients, real payloads, and faults as they are configured."""

from dpcomp.federated.server.cohort import Fixed as Fixed
from dpcomp.simulation.callbacks import Callback as Callback
from dpcomp.simulation.callbacks import MLflow as MLflow
from dpcomp.simulation.callbacks import RunInProgress as RunInProgress
from dpcomp.simulation.callbacks import StopEarly as StopEarly
from dpcomp.simulation.callbacks import TensorBoard as TensorBoard
from dpcomp.simulation.callbacks import WeightsAndBiases as WeightsAndBiases
from dpcomp.simulation.network.faulty_network import Faults as Faults
from dpcomp.simulation.network.protocol import Versioned as Versioned
from dpcomp.simulation.network.unversioned import Unversioned as Unversioned
from dpcomp.simulation.partition import IID as IID
from dpcomp.simulation.partition import ByClientId as ByClientId
from dpcomp.simulation.partition import Dirichlet as Dirichlet
from dpcomp.simulation.probes import Clipping as Clipping
from dpcomp.simulation.probes import SignalToNoise as SignalToNoise
from dpcomp.simulation.probes import TopKOverlap as TopKOverlap
from dpcomp.simulation.run import Run as Run
from dpcomp.simulation.simulate import simulate as simulate
from dpcomp.simulation.task import Task as Task
