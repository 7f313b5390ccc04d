"""What an observer of runs has: features by name, for every run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from dpcomp.codec.entropy.coder import Metered
from dpcomp.core.address import SERVER
from dpcomp.core.support import Listed
from dpcomp.wire.bits_by_part import layer_bits, measure_payload
from dpcomp.wire.channel import Channel
from dpcomp.wire.headers import unsealed
from dpcomp.wire.memory import ClientMemory, ServerMemory
from dpcomp.wire.update import Update

Features = Mapping[str, Float64[np.ndarray, "_"]]
Observations = Mapping[str, Float64[np.ndarray, "runs _"]]

BODY_BYTES = 24  # of the beginning of a body, which holds gains, header, and side information before the levels
LARGEST = 1e30  # an infinite feature becomes this, so that sums of squares stay finite


@runtime_checkable
class Door(Protocol):
    """A place where an audit enters: it runs a mechanism on either of two neighbours, and tells what is observed.

    Runs must be independent, and their noise fresh: `dp.SecretSeed()`. What is observed is what the claimed trust model
    lets an observer see, and no more.
    """

    def observe(self, present: bool, runs: int) -> Observations:
        """Run the mechanism, and return what is observed.

        Args:
            present: Whether the canary is among the units: which of the two neighbours the runs are on.
            runs: How many runs.

        Returns:
            For each name a (runs, m) array; names and m are the same whether the canary is present or not.
        """
        ...


def stacked(runs: Sequence[Features]) -> Observations:
    """Stack the features of runs, which all have the same names and lengths.

    Args:
        runs: The features of each run: (m,) arrays by name.

    Returns:
        (runs, m) arrays by name.
    """
    return {name: np.stack([features[name] for features in runs]) for name in runs[0]}


def feature_matrix(observations: Observations) -> tuple[tuple[str, ...], Float64[np.ndarray, "runs features"]]:
    """Return the names of all features, and their values: a row a run. Each row also counts what is not finite in it.

    Args:
        observations: What a door returned.
    """
    names, columns = [], []
    for name, values in observations.items():
        rows = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
        names += [name] if rows.shape[1] == 1 else [f"{name}[{place}]" for place in range(rows.shape[1])]
        columns.append(rows)
    matrix = np.concatenate(columns, axis=1)
    strange = np.count_nonzero(~np.isfinite(matrix), axis=1).astype(np.float64)
    matrix = np.clip(np.nan_to_num(matrix, nan=0.0, posinf=LARGEST, neginf=-LARGEST), -LARGEST, LARGEST)
    return (*names, "values that are not finite"), np.concatenate([matrix, strange[:, None]], axis=1)


def message_features(
    channel: Channel,
    payload: bytes,
    decoded: Update,
    memory: ClientMemory | ServerMemory,
    *,
    where: str,
    directions: Iterable[Float64[np.ndarray, "d"]] = (),
) -> Features:
    """Return all that a reader learns from a payload: its length, its parts, the decoded values and their support.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        payload: A client's payload or a broadcast.
        decoded: The update that was decoded from it.
        memory: A memory from before the payload, as for `measure_payload`.
        where: What the names of the features begin with, such as `"round 0"`.
        directions: (d,) vectors that the reader knows, such as the canaries of all rounds; the values along them are
            features too.
    """
    values, layout = decoded.dense().astype(np.float64), memory.layout
    held = np.zeros(layout.size)
    held[decoded.support.indices(layout.size)] = 1
    along = np.array([values @ direction for direction in directions])
    parts = {
        "bytes": [len(payload)],
        "body": _beginning(unsealed(payload).body),
        "value": values,
        "held": held,
        "largest by layer": [np.abs(layer).max(initial=0.0) for layer in layout.split(values)],
        "norm": [np.linalg.norm(values)],
        "along the canary": along,
        "along the canary, without sign": np.abs(along),
        **_codec_parts(channel, payload, decoded, memory),
    }
    return {f"{where}: {name}": np.asarray(part, dtype=np.float64) for name, part in parts.items()}


def _codec_parts(
    channel: Channel, payload: bytes, decoded: Update, memory: ClientMemory | ServerMemory
) -> dict[str, Sequence[float]]:
    """Return what a reader learns from the parts of a payload, where its first bytes do not show it."""
    codec = channel.downlink if unsealed(payload).client == SERVER else channel.uplink
    parts: dict[str, Sequence[float]] = {}
    if codec.allocates:
        parts["bits a value by layer"] = list(layer_bits(channel, payload, memory).values())
    if isinstance(decoded.support, Listed) and isinstance(codec.entropy, Metered):  # positions stand before the side
        body, bits = measure_payload(channel, payload, memory)
        parts["side"] = _beginning(body.side)
        parts["bits by part"] = [bits.index, bits.side, bits.value]
    return parts


def _beginning(data: bytes | memoryview) -> Sequence[float]:
    """Return the first bytes of some data as numbers, and zeros for those that are missing."""
    return [*data[:BODY_BYTES], *[0] * (BODY_BYTES - len(data))]
