"""A client in a folder of its own, for tests of what happens to folders, and the terms of its federation."""

import numpy as np

import dpcomp as dp
from dpcomp.federated import ReplyReceived, TimedOut, Trained
from dpcomp.terms import FederationTerms

D, DELTA = 30, 1e-5
FIRST = np.zeros(D, np.float32)
PIPELINE = dp.Pipeline(
    sampling=dp.Poisson(0.1),
    mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)),
    codec=dp.Codec(sparsify=dp.TopK(0.2), quantize=dp.Uniform(4)),
)


def terms_of(rounds=40, clients=4, steps=2, **others):
    return FederationTerms.agree(PIPELINE, D, FIRST, rounds=rounds, clients=clients, steps=steps, **others)


def open_ledger(path, budget=None):
    return dp.Ledger(path) if path.exists() else dp.Ledger.create(path, budget)


class Client:
    """A client in a folder of its own, as a process has it from its start to its end."""

    def __init__(self, terms, folder, client=1, budget=None):
        self.terms, self.folder, self.client = terms, folder, client
        folder.mkdir(exist_ok=True)
        self.ledger = open_ledger(folder / "ledger.db", budget)
        self.participant = terms.participant(D, FIRST, client=client, ledger=self.ledger, folder=folder / "client")

    def say(self, server, event):
        messages = self.participant.handle(event)
        while messages:
            reply = server.handle(messages.pop(0), sender=self.client)
            if reply is not None:
                messages += self.participant.handle(ReplyReceived(reply))

    def release(self):
        memory = self.participant.state.memory
        permit = self.ledger.charge(PIPELINE.cost, memory.address, steps=self.terms.steps)
        values = np.random.default_rng(memory.address.round).standard_normal((20, D)).astype(np.float32)
        first, *others = [PIPELINE.release([values], memory, dp.SecretSeed(), permit) for _ in range(self.terms.steps)]
        return Trained(first.derive(first.dense() + sum(other.dense() for other in others)))

    def take_part(self, server):
        self.say(server, TimedOut())
        if self.participant.may_train:
            self.say(server, self.release())

    def close(self):
        self.ledger.close()
