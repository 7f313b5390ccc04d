"""The server and the clients of a federation, for any transport; this folder imports no machine-learning framework."""

from dpcomp.federated.absence import Decay as Decay
from dpcomp.federated.absence import Drop as Drop
from dpcomp.federated.absence import Keep as Keep
from dpcomp.federated.largest_update import largest_update as largest_update
from dpcomp.federated.participant import Participant as Participant
from dpcomp.federated.phases import BroadcastReceived as BroadcastReceived
from dpcomp.federated.phases import ReplyReceived as ReplyReceived
from dpcomp.federated.phases import Restarted as Restarted
from dpcomp.federated.phases import TimedOut as TimedOut
from dpcomp.federated.phases import Trained as Trained
from dpcomp.federated.server import Server as Server
from dpcomp.federated.server.aggregation import TrustedRelease as TrustedRelease
from dpcomp.federated.server.cohort import Cohort as Cohort
from dpcomp.federated.server.cohort import Fixed as Fixed
from dpcomp.federated.server.late import Reject as Reject
from dpcomp.federated.server.late import Weigh as Weigh
from dpcomp.federated.server.optimizers import ServerAdagrad as ServerAdagrad
from dpcomp.federated.server.optimizers import ServerAdam as ServerAdam
from dpcomp.federated.server.optimizers import ServerOptimizer as ServerOptimizer
from dpcomp.federated.server.optimizers import ServerRule as ServerRule
from dpcomp.federated.server.optimizers import ServerYogi as ServerYogi
