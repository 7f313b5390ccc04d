"""FollowedOnce: decodes each broadcast once for all simulated clients that stand at the same version."""

from collections import OrderedDict
from dataclasses import replace

import numpy as np

from dpcomp.federated.client import Position, follow_broadcast
from dpcomp.wire.channel import Channel
from dpcomp.wire.memory import Shared
from dpcomp.wire.update import Update

KEPT = 2  # positions: clients follow a broadcast before the one after it


class FollowedOnce:
    """Gives what `follow_broadcast` gives; clients at the same version get the same arrays, decoded once.

    Shared memory and model are functions of the first model and the broadcasts, all of which shared memory's digest
    names. So the digest and the broadcast say what a client has after it.
    """

    def __init__(self):
        self._followed: OrderedDict[tuple[bytes, bytes], tuple[Shared, Update, np.ndarray]] = OrderedDict()

    def __call__(self, channel: Channel, broadcast: bytes, position: Position) -> Position:
        """Move the memory and the model of a client to the next version.

        Args:
            channel: The channel of both ends: `pipeline.channel`.
            broadcast: The server's message.
            position: The client's memory, and its model as a (d,) vector.

        Returns:
            The memory and the model after the broadcast.

        Raises:
            CorruptPayload, VersionMismatch: As `follow_broadcast` does.
        """
        memory, _ = position
        key = memory.shared.digest, bytes(broadcast)
        known = self._followed.get(key)
        if known is None:
            after, model = follow_broadcast(channel, broadcast, position)
            assert after.step is not None
            self._followed[key] = after.shared, after.step, model
            while len(self._followed) > KEPT:
                self._followed.popitem(last=False)
            return after, model
        shared, step, model = known
        tracked = memory.tracked
        if tracked is not None:
            tracked = tracked.after_broadcast(step.dense(), memory.layout)
        return replace(memory, shared=shared, step=step, tracked=tracked), model
