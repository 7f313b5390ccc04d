"""Where each codec pays, here and on published devices: the results of the cost study, put into the model.

A codec is held against float32 twice: as it was measured, on the same road through frame, digest and checks; and
"free", its 4d bytes sent from memory in no time. The free one needs nothing of this library, and a break-even
bandwidth against it is the lowest that any float32 could give.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.cost.devices import DEVICES, SERVER_WATTS
from analysis.cost.model import (
    FLOAT_BYTES,
    Delivery,
    Device,
    Range,
    break_even_bandwidth,
    break_even_joules_per_bit,
)

HERE = "measured (server core)"
PACKED = "8 bits, packed"  # the least work of those that keep every coordinate
MEGA, NANO = 1e6, 1e-9


def table_of(reports: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A row an update, seed and codec, with all that was measured; `update` is the study's name."""
    frames = [
        pd.DataFrame(report["costs"]).assign(
            update=report["config"]["name"], seed=report["seed"], coordinates=report["coordinates"]
        )
        for report in reports
    ]
    if not frames:
        raise ValueError("there is no report with a table of costs: run python -m experiments study cost first")
    return pd.concat(frames, ignore_index=True)


def on_devices(costs: pd.DataFrame) -> pd.DataFrame:
    """A row an update, codec and device, here first: what a delivery takes, and where it breaks even, as ranges.

    Ranges, the columns ending in _low and _high, span the seeds, and of a device also what was published of it:
    payload_bytes; encode_seconds; mbits, the break-even bandwidth against free float32 in Mbit/s; packed_mbits, that
    against `PACKED`; nanojoules, the break-even energy a bit against free float32. NaN against what is no larger, and
    without watts. How much the codecs lose differs, and is no part of this.
    """
    rows: list[dict[str, Any]] = []
    groups: Any = costs.groupby(["update", "seed"], sort=False)
    for (update, _), seed in groups:
        d = int(seed["coordinates"].iloc[0])
        for device in (None, *DEVICES):
            where = {"update": update, "coordinates": d, "device": HERE if device is None else device.name}
            for sent, watts in _ends(seed, device):
                rows += [
                    {**where, "codec": codec, **_evens(one, sent.get(PACKED), d, watts)} for codec, one in sent.items()
                ]
    found: Any = pd.DataFrame(rows).groupby(["update", "codec", "device", "coordinates"], sort=False)
    return found.min().add_suffix("_low").join(found.max().add_suffix("_high")).reset_index()


def _ends(seed: pd.DataFrame, device: Device | None) -> Iterator[tuple[dict[str, Delivery], float | None]]:
    """One seed's deliveries by codec, and the watts, at the less demanding and the more demanding end of a device."""
    rows = seed.to_dict("records")
    if device is None:
        here = _deliveries(rows, [row["encode_seconds"] for row in rows])
        yield here, SERVER_WATTS.low
        yield here, SERVER_WATTS.high
        return
    there = [device.seconds(Range(row["encode_copies"], row["encode_copies"]), row["coordinates"]) for row in rows]
    yield _deliveries(rows, [seconds.low for seconds in there]), device.watts and device.watts.low
    yield _deliveries(rows, [seconds.high for seconds in there]), device.watts and device.watts.high


def _deliveries(rows: Sequence[Mapping[Any, Any]], seconds: Sequence[float]) -> dict[str, Delivery]:
    return {
        row["codec"]: Delivery(payload_bytes=row["payload_bytes"], encode_seconds=each)
        for row, each in zip(rows, seconds, strict=True)
    }


def _evens(sent: Delivery, packed: Delivery | None, coordinates: int, watts: float | None) -> dict[str, float]:
    free = free_float32(coordinates)
    nanojoules = math.nan
    if watts is not None and sent.payload_bytes < free.payload_bytes:
        nanojoules = break_even_joules_per_bit(sent, free, watts=watts) / NANO
    return {
        "payload_bytes": sent.payload_bytes,
        "encode_seconds": sent.encode_seconds,
        "mbits": _mbits(sent, free),
        "packed_mbits": _mbits(sent, packed),
        "nanojoules": nanojoules,
    }


def claim_table(reports: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the claim in numbers: a row an update and codec, medians over the seeds.

    ratio: compression; error: relative squared; encode_copies, decode_copies: of the float32 vector; encode_peak,
    decode_peak: of memory, in the update's 4d bytes. The rest are break-even bandwidths in Mbit/s: mbits, against
    float32 as it was measured; and against free float32 and `PACKED`, NaN for what is no smaller than that.
    """
    costs: Any = table_of(reports)
    middles = costs.groupby(["update", "codec"], sort=False).median(numeric_only=True).reset_index()
    raw_bytes = FLOAT_BYTES * middles["coordinates"]
    sent = {
        (row["update"], row["codec"]): Delivery(
            payload_bytes=row["payload_bytes"], encode_seconds=row["encode_seconds"]
        )
        for row in middles.to_dict("records")
    }
    return pd.DataFrame(
        {
            "update": middles["update"],
            "codec": middles["codec"],
            "payload_bytes": middles["payload_bytes"].astype(int),
            "ratio": raw_bytes / middles["payload_bytes"],
            "error": middles["relative_squared_error"],
            "encode_ms": 1000 * middles["encode_seconds"],
            "encode_copies": middles["encode_copies"],
            "encode_peak": middles["encode_peak_bytes"] / raw_bytes,
            "decode_ms": 1000 * middles["decode_seconds"],
            "decode_copies": middles["decode_copies"],
            "decode_peak": middles["decode_peak_bytes"] / raw_bytes,
            "mbits": [_mbits(one, sent.get((update, "float32"))) for (update, _), one in sent.items()],
            "mbits_of_free": [
                _mbits(one, free_float32(int(d))) for one, d in zip(sent.values(), middles["coordinates"], strict=True)
            ],
            "mbits_of_packed": [_mbits(one, sent.get((update, PACKED))) for (update, _), one in sent.items()],
        }
    )


def free_float32(coordinates: int) -> Delivery:
    """Float32 that takes its bytes and no work at all."""
    return Delivery(payload_bytes=FLOAT_BYTES * coordinates, encode_seconds=0.0)


def _mbits(coded: Delivery, other: Delivery | None) -> float:
    """NaN where there is no other, or one that is no larger."""
    if other is None or coded.payload_bytes >= other.payload_bytes:
        return math.nan
    return break_even_bandwidth(coded, other) / MEGA
