"""Trainers for worker processes; this module imports no framework, so that workers begin at once."""

import os
import signal
from pathlib import Path

import dpcomp as dp
from tests.simulation.own_trainer import LeastSquares


class Parallel(LeastSquares):
    """Least squares that says what a round costs; where the server is trusted, the update is clean."""

    def __init__(self, learning_rate=0.3, releases=1):
        super().__init__(learning_rate)
        self.releases = releases

    def train(self, client, start, memory, ledger):
        if self.federation.pipeline.unit == "example":
            return super().train(client, start, memory, ledger)
        pipeline, mine = self.federation.pipeline, self.parts[client]
        errors = self.inputs[mine] @ start - self.targets[mine]
        change = -self.learning_rate * errors @ self.inputs[mine] / 50
        if pipeline.trust == "server":
            return dp.Update(values=change, layout=self.layout, address=memory.address)
        permit = ledger.charge(pipeline.cost, memory.address)
        return pipeline.release([change[None, :]], memory, self.federation.secret, permit)


class Logged(Parallel):
    """Writes down in which process a trainer was made, and which clients it trained."""

    def __init__(self, folder):
        super().__init__()
        self.folder = Path(folder)

    def make_trainer(self, federation):
        with (self.folder / "made").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return super().make_trainer(federation)

    def train(self, client, start, memory, ledger):
        with (self.folder / "trained").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return super().train(client, start, memory, ledger)


class Assuming(Parallel):
    """Notes an assumption with its permit."""

    def train(self, client, start, memory, ledger):
        charge = ledger.charge

        def noted(*arguments, **named):
            permit = charge(*arguments, **named)
            permit.assume(["the moon is public"])
            return permit

        ledger.charge = noted
        return super().train(client, start, memory, ledger)


class Dying(Parallel):
    """Ends its process, or interrupts the one that sent the work, in the second round."""

    def __init__(self, how):
        super().__init__()
        self.how, self.parent = how, os.getpid()

    def train(self, client, start, memory, ledger):
        if memory.address.round == 1 and client == 2:
            if self.how == "dies":
                os._exit(1)
            os.kill(self.parent, signal.SIGINT)
        return super().train(client, start, memory, ledger)
