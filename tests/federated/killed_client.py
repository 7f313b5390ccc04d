"""A client in a process of its own, to be killed: it trains, charges, saves, sends, and starts over."""

from multiprocessing.connection import Connection

import numpy as np

import dpcomp as dp
from dpcomp.core.errors import CorruptPayload, VersionMismatch
from dpcomp.federated.messages import is_reply
from dpcomp.federated.participant import Participant
from dpcomp.federated.phases import BroadcastReceived, ReplyReceived, TimedOut, Trained

LAYOUT = dp.Layout.of({"a": (60, 50), "b": (77,)})
RUN = dp.PublicSeed(8)
PIPELINE = dp.Pipeline(
    mechanism=(dp.Clip(1.0), dp.Gaussian(0.7)), codec=dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(4))
)


def opened(folder, client=0):
    """The client of a folder, as any process would open it."""
    memory = PIPELINE.init_client(LAYOUT, RUN, client)
    ledger = dp.Ledger(f"{folder}/ledger.db")
    return Participant(PIPELINE.channel, memory, np.zeros(LAYOUT.size, np.float32), ledger, f"{folder}/checkpoints")


def live(folder: str, line: Connection) -> None:
    """Take part for as long as the process lives; the noise is the system's, so that no second draw is the first."""
    participant, secret = opened(folder), dp.SecretSeed()
    messages = participant.handle(TimedOut())
    while True:
        for message in messages:
            line.send_bytes(message)
        if participant.may_train:
            memory = participant.state.memory
            permit = participant.ledger.charge(PIPELINE.cost, memory.address)
            gradients = np.random.default_rng(memory.shared.version).standard_normal((20, LAYOUT.size))
            update = PIPELINE.release([gradients.astype(np.float32)], memory, secret, permit)
            messages = participant.handle(Trained(update))
        elif line.poll(0.05):
            message = line.recv_bytes()
            try:
                messages = participant.handle(
                    ReplyReceived(message) if is_reply(message) else BroadcastReceived(message)
                )
            except (CorruptPayload, VersionMismatch):
                messages = []
        else:
            messages = participant.handle(TimedOut())
