"""The federation: rounds of many clients and a server; it knows nothing of how bytes are made."""

from dpcomp.federated.absence import Decay as Decay
from dpcomp.federated.absence import Drop as Drop
from dpcomp.federated.absence import Keep as Keep
from dpcomp.federated.late import Reject as Reject
from dpcomp.federated.late import Weigh as Weigh
from dpcomp.simulation.faulty_network import Faults as Faults
from dpcomp.simulation.partition import IID as IID
from dpcomp.simulation.partition import Dirichlet as Dirichlet
from dpcomp.simulation.protocol import Versioned as Versioned
from dpcomp.simulation.simulate import Run as Run
from dpcomp.simulation.simulate import simulate as simulate
from dpcomp.simulation.task import Task as Task
