"""The federation: rounds of many clients and a server; it knows nothing of how bytes are made."""

from dpcomp.federated.partition import IID as IID
from dpcomp.federated.partition import Dirichlet as Dirichlet
from dpcomp.federated.simulate import Run as Run
from dpcomp.federated.simulate import simulate as simulate
from dpcomp.federated.task import Task as Task
