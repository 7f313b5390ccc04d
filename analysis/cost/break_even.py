"""Where each codec pays, on this machine and on published devices: results of the cost study, put into the model.

A codec is compared with float32 in two ways: as it was measured, through the same frame, digest and checks; and "free",
as 4d bytes that are sent from memory in no time. The free one needs nothing of this library, so a break-even bandwidth
against it is the lowest that any float32 could give.
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

THIS_MACHINE = "measured (server core)"
PACKED_8_BITS = "8 bits, packed"  # the least work of the codecs that keep every coordinate
MEGA, NANO = 1e6, 1e-9


def measured_costs(reports: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Collect the costs of all reports: one row for each update, seed and codec.

    Columns are those of a report's table of costs, and `update`, the name of the study; `seed`; `coordinates`.

    Raises:
        ValueError: There is no report.
    """
    frames = [
        pd.DataFrame(report["costs"]).assign(
            update=report["config"]["name"], seed=report["seed"], coordinates=report["coordinates"]
        )
        for report in reports
    ]
    if not frames:
        raise ValueError("there is no report with a table of costs: run python -m experiments study cost first")
    return pd.concat(frames, ignore_index=True)


def costs_by_device(costs: pd.DataFrame) -> pd.DataFrame:
    """Compute the time of a delivery and its break-even points, for each update, codec and device, this machine first.

    All are ranges over the seeds, and on a device also over what was published of it; how much the codecs lose is no
    part of them. Columns end in `_low` and `_high`: `payload_bytes`; `encode_seconds`; `mbits`, the break-even
    bandwidth against free float32 in Mbit/s; `packed_mbits`, against `PACKED_8_BITS`; `nanojoules`, the break-even
    energy a bit against free float32. NaN against a payload that is no larger, and for a device of unknown power.
    """
    rows: list[dict[str, Any]] = []
    groups: Any = costs.groupby(["update", "seed"], sort=False)
    for (update, _), part in groups:
        d = int(part["coordinates"].iloc[0])
        for device in (None, *DEVICES):
            key = {"update": update, "coordinates": d, "device": THIS_MACHINE if device is None else device.name}
            for deliveries, watts in _range_ends(part, device):
                rows += [
                    {**key, "codec": codec, **_break_evens(delivery, deliveries.get(PACKED_8_BITS), d, watts)}
                    for codec, delivery in deliveries.items()
                ]
    groups = pd.DataFrame(rows).groupby(["update", "codec", "device", "coordinates"], sort=False)
    return groups.min().add_suffix("_low").join(groups.max().add_suffix("_high")).reset_index()


def _range_ends(costs: pd.DataFrame, device: Device | None) -> Iterator[tuple[dict[str, Delivery], float | None]]:
    """Give one seed's deliveries by codec and the watts, for the low and for the high end of a device's ranges."""
    rows = costs.to_dict("records")
    if device is None:
        here = _deliveries(rows, [row["encode_seconds"] for row in rows])
        yield here, SERVER_WATTS.low
        yield here, SERVER_WATTS.high
        return
    there = [device.seconds(Range(row["encode_copies"], row["encode_copies"]), row["coordinates"]) for row in rows]
    yield _deliveries(rows, [seconds.low for seconds in there]), device.watts and device.watts.low
    yield _deliveries(rows, [seconds.high for seconds in there]), device.watts and device.watts.high


def _deliveries(rows: Sequence[Mapping[Any, Any]], encode_seconds: Sequence[float]) -> dict[str, Delivery]:
    return {
        row["codec"]: Delivery(payload_bytes=row["payload_bytes"], encode_seconds=seconds)
        for row, seconds in zip(rows, encode_seconds, strict=True)
    }


def _break_evens(
    delivery: Delivery, packed: Delivery | None, coordinates: int, watts: float | None
) -> dict[str, float]:
    free = free_float32(coordinates)
    nanojoules = math.nan
    if watts is not None and delivery.payload_bytes < free.payload_bytes:
        nanojoules = break_even_joules_per_bit(delivery, free, watts=watts) / NANO
    return {
        "payload_bytes": delivery.payload_bytes,
        "encode_seconds": delivery.encode_seconds,
        "mbits": _mbits(delivery, free),
        "packed_mbits": _mbits(delivery, packed),
        "nanojoules": nanojoules,
    }


def cost_summary(reports: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Summarise the cost study: one row for each update and codec, with medians over the seeds.

    Columns: `payload_bytes`; `ratio`, of compression; `error`, relative squared; `encode_ms`, `decode_ms`;
    `encode_copies`, `decode_copies`, the same in copies of the float32 vector; `encode_peak`, `decode_peak`, of
    memory, in the update's 4d bytes; and break-even bandwidths in Mbit/s: `mbits`, against float32 as it was measured,
    `mbits_of_free`, against free float32, `mbits_of_packed`, against `PACKED_8_BITS`; NaN against a payload that is no
    larger.

    Raises:
        ValueError: There is no report.
    """
    costs: Any = measured_costs(reports)
    medians = costs.groupby(["update", "codec"], sort=False).median(numeric_only=True).reset_index()
    coordinates = medians["coordinates"].astype(int)
    raw_bytes = FLOAT_BYTES * coordinates
    deliveries = {
        (row["update"], row["codec"]): Delivery(
            payload_bytes=row["payload_bytes"], encode_seconds=row["encode_seconds"]
        )
        for row in medians.to_dict("records")
    }

    def mbits_against(codec: str) -> list[float]:
        return [_mbits(delivery, deliveries.get((update, codec))) for (update, _), delivery in deliveries.items()]

    return pd.DataFrame(
        {
            "update": medians["update"],
            "codec": medians["codec"],
            "payload_bytes": medians["payload_bytes"].astype(int),
            "ratio": raw_bytes / medians["payload_bytes"],
            "error": medians["relative_squared_error"],
            "encode_ms": 1000 * medians["encode_seconds"],
            "encode_copies": medians["encode_copies"],
            "encode_peak": medians["encode_peak_bytes"] / raw_bytes,
            "decode_ms": 1000 * medians["decode_seconds"],
            "decode_copies": medians["decode_copies"],
            "decode_peak": medians["decode_peak_bytes"] / raw_bytes,
            "mbits": mbits_against("float32"),
            "mbits_of_free": [
                _mbits(delivery, free_float32(d)) for delivery, d in zip(deliveries.values(), coordinates, strict=True)
            ],
            "mbits_of_packed": mbits_against(PACKED_8_BITS),
        }
    )


def free_float32(coordinates: int) -> Delivery:
    """Make the delivery of a float32 vector that takes its 4d bytes and no work at all."""
    return Delivery(payload_bytes=FLOAT_BYTES * coordinates, encode_seconds=0.0)


def _mbits(coded: Delivery, other: Delivery | None) -> float:
    """Compute the break-even bandwidth in Mbit/s; NaN where there is no other, or one that is no larger."""
    if other is None or coded.payload_bytes >= other.payload_bytes:
        return math.nan
    return break_even_bandwidth(coded, other) / MEGA
