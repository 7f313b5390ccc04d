"""A server and clients that tests let talk to each other, without a network between them."""

import numpy as np

import dpcomp as dp
from dpcomp.federated import Server, TrustedRelease
from dpcomp.federated.participant import Participant
from dpcomp.federated.phases import BroadcastReceived, Phase, ReplyReceived, TimedOut, Trained
from dpcomp.federated.server.late import Reject
from dpcomp.federated.server.optimizers import ServerOptimizer
from dpcomp.wire.update import with_claim

LAYOUT = dp.Layout.of({"a": (100, 48), "b": (200,)})
RUN, RUN_ID = dp.PublicSeed(3), b"the ends"
NOISE = (dp.Clip(1.0), dp.Gaussian(0.5))
TOP = dp.Codec(sparsify=dp.TopK(0.01), quantize=dp.Uniform(4))
PIPELINE = dp.Pipeline(mechanism=NOISE, codec=TOP)
TRUSTED = dp.Pipeline(mechanism=NOISE, codec=TOP, unit="client", trust="server")
DOWN = {
    "top-k": PIPELINE,
    "dense": dp.Pipeline(mechanism=NOISE, codec=TOP, downlink=dp.Codec(quantize=dp.Uniform(4))),
    "predicted": dp.Pipeline(
        mechanism=NOISE, codec=TOP, downlink=dp.Codec(predict=dp.LastBroadcast(), quantize=dp.Sign())
    ),
}


def zeros(layout=LAYOUT):
    return np.zeros(layout.size, np.float32)


def server_of(pipeline=PIPELINE, folder=None, ledger=None, late_policy=None, optimizer=ServerOptimizer()):
    trusted_release = None
    if pipeline.trust == "server":
        trusted_release = TrustedRelease(
            pipeline=pipeline, secret=dp.SecretSeed(0), ledger=ledger or dp.Ledger(), divisor=1.0
        )
    memory = pipeline.init_server(LAYOUT, RUN, run_id=RUN_ID)
    return Server(
        pipeline.channel,
        memory,
        zeros(),
        trusted_release=trusted_release,
        folder=folder,
        late_policy=late_policy or Reject(),
        optimizer=optimizer,
    )


def participant_of(pipeline=PIPELINE, client=1, run=RUN, layout=LAYOUT):
    return Participant(pipeline.channel, pipeline.init_client(layout, run, client), zeros(layout), dp.Ledger())


def update_of(pipeline, memory, seed=0):
    values = np.random.default_rng(seed).standard_normal(memory.layout.size).astype(np.float32)
    update = dp.Update(values=values, layout=memory.layout, address=memory.address)
    return with_claim(update, pipeline.claim) if pipeline.trust == "nobody" else update


def trained(participant, pipeline=PIPELINE, seed=0):
    """The event of an update that the participant's ledger was charged for."""
    memory = participant.state.memory
    participant.ledger.charge(pipeline.cost, memory.address)
    return Trained(update_of(pipeline, memory, seed))


def talk(participant, server, event):
    """An event, and all that is said until nobody has anything to say."""
    memory = participant.state.memory
    released = isinstance(event, Trained) and isinstance(event.update.claim, dp.Released)
    if released and not participant.ledger.charged(memory.address):
        participant.ledger.charge(PIPELINE.cost, memory.address)  # the cost of all of them: they have one mechanism
    messages = participant.handle(event)
    while messages:
        word = server.handle(messages.pop(0), participant.state.memory.client)
        if word is not None:
            messages += participant.handle(ReplyReceived(word))


def together(pipeline, rounds, server=None, participant=None):
    """Both ends after so many rounds."""
    server, participant = server or server_of(pipeline), participant or participant_of(pipeline)
    talk(participant, server, TimedOut())
    for number in range(rounds):
        talk(participant, server, Trained(update_of(pipeline, participant.state.memory, number)))
        talk(participant, server, BroadcastReceived(server.close_round()))
    return server, participant


def stands_with(participant, server):
    state, shared = participant.state, server.memory.shared
    assert state.phase is Phase.SYNCED
    assert state.model.tobytes() == server.model.tobytes()
    assert (state.memory.shared.version, state.memory.shared.digest) == (shared.version, shared.digest)
    assert state.memory.shared.last_support == shared.last_support
    for one, other in ((state.memory.shared.reference, shared.reference),):
        assert (one is None) == (other is None) and (one is None or one.tobytes() == other.tobytes())
    assert state.memory.link == server.memory.link(state.memory.client)
