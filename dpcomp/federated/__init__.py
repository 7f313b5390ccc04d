"""The federation: rounds of many clients and a server; it knows nothing of how bytes are made."""

from dpcomp.federated.absence import Decay as Decay
from dpcomp.federated.absence import Drop as Drop
from dpcomp.federated.absence import Keep as Keep
from dpcomp.federated.ends import Versioned as Versioned
from dpcomp.federated.late import Reject as Reject
from dpcomp.federated.late import Weigh as Weigh
from dpcomp.federated.network import Faults as Faults
from dpcomp.federated.partition import IID as IID
from dpcomp.federated.partition import Dirichlet as Dirichlet
from dpcomp.federated.simulate import Run as Run
from dpcomp.federated.simulate import simulate as simulate
from dpcomp.federated.task import Task as Task
