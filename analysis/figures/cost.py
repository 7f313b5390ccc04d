"""What compression costs a sender beside its bandwidth: the time to deliver, and where each codec pays: claim 6."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.cost.break_even import MEGA, NANO, THIS_MACHINE, free_float32
from analysis.cost.devices import LINKS, RADIOS
from analysis.cost.model import Delivery, Range, break_even_bandwidth
from analysis.figures import ResultsFigure
from analysis.tables.studies import costs_of
from dpcomp.lab.figures.style import COLUMN_INCHES, by_method, use_style

UPDATE = "resnet18"  # no cache holds it, as the scaling to devices asks for
CODECS = ("float32", "8 bits, packed", "8 bits", "4 bits", "rotated", "top 1 %, 4 bits")  # of the upper panels
SLOWEST = "Pi Zero 2 W"
MEGABITS = np.geomspace(0.1, 1000, 201)
APART = 0.16  # rows, between the devices of a codec
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))


def draw(evens: pd.DataFrame) -> Figure:
    """Draw delivery times on this machine and on the slowest device, and all break-even bandwidths and energies.

    Above: seconds until an update is sent, by bandwidth; the black line is float32 that takes no work, and a star
    stands where a codec meets it. Below: the bandwidths up to which a codec is delivered sooner than that line, and
    than packed 8 bits, beside uplinks; and the energy a bit from which on it takes the sender less than that line,
    beside radios. Marks are the geometric middle of ranges over seeds and over what was published.
    """
    use_style()
    frame: Any = evens[evens["update"] == UPDATE]
    figure = plt.figure(figsize=(2.2 * COLUMN_INCHES, 2.7 * COLUMN_INCHES))
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.1, 1.8))
    above, below = parts
    times = above.subplots(1, 2, sharey=True)
    for axes, device in zip(times, (THIS_MACHINE, SLOWEST), strict=True):
        _times(axes, frame[frame["device"] == device])
        axes.set_title(device if device == THIS_MACHINE else f"{device} (model)")
    times[0].set_ylabel("seconds to send an update (log)")
    coded = frame[frame["codec"] != "float32"]
    uplinks = {link.name: _in(MEGA, link.bits_per_second) for link in LINKS}
    radios = {radio.name: _in(NANO, radio.joules_per_bit) for radio in RADIOS}
    panels = below.subplots(1, 3, sharey=True)
    _evens(panels[0], coded, "mbits", uplinks, "break-even with\nfloat32, no work (Mbit/s)")
    _evens(panels[1], coded, "packed_mbits", uplinks, "break-even with\n8 bits, packed (Mbit/s)")
    _evens(panels[2], coded, "nanojoules", radios, "break-even with float32,\nno work (nJ a bit)")
    panels[2].set_xlim(right=3000)  # room for the last radio's name
    above.legend(*times[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    below.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, columnspacing=1.2)
    return figure


def _times(axes: Axes, rows: pd.DataFrame) -> None:
    free = free_float32(int(rows["coordinates"].iloc[0]))
    axes.plot(MEGABITS, [free.seconds(MEGA * each) for each in MEGABITS], color="0.1", label="float32, no work")
    style = by_method(CODECS)
    for number, (codec, dashes) in enumerate(zip(CODECS, DASHES, strict=True)):
        row = rows.set_index("codec").loc[codec]
        seconds = Range(row["encode_seconds_low"], row["encode_seconds_high"]).middle
        sent = Delivery(payload_bytes=float(row["payload_bytes_low"]), encode_seconds=seconds)
        times = [sent.seconds(MEGA * each) for each in MEGABITS]
        marks = {"marker": style["markers"][codec], "markersize": 5, "markevery": (5 + 5 * number, 40)}
        axes.plot(MEGABITS, times, color=style["palette"][codec], linestyle=dashes, label=codec, **marks)
        even = break_even_bandwidth(sent, free)
        if 0 < even <= MEGA * MEGABITS[-1]:
            axes.plot(even / MEGA, free.seconds(even), "*", color="0.1", markersize=10, zorder=3)
    axes.plot([], [], "*", color="0.1", markersize=10, label="as soon as float32, no work")
    axes.set(xscale="log", yscale="log", xlabel="bandwidth (Mbit/s, log)")
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))


def _evens(axes: Axes, rows: Any, column: str, beside: dict[str, Range], label: str) -> None:
    """Draw a row a codec and a mark a device, none where there is no break-even; below, what they are compared with."""
    codecs, devices = (list(dict.fromkeys(rows[name])) for name in ("codec", "device"))
    style = by_method(devices)
    for number, device in enumerate(devices):
        part = rows[(rows["device"] == device) & np.isfinite(rows[f"{column}_high"])]
        low, high = part[f"{column}_low"].to_numpy(), part[f"{column}_high"].to_numpy()
        places = [codecs.index(name) + APART * (number - (len(devices) - 1) / 2) for name in part["codec"]]
        middles = np.sqrt(low * high)
        around = {"xerr": [middles - low, high - middles], "elinewidth": 1.2, "markersize": 4}
        look = {"fmt": style["markers"][device], "color": style["palette"][device]}
        axes.errorbar(middles, places, label=device, **look, **around)
    for codec, best in rows.groupby("codec")[f"{column}_low"].min().items():
        if np.isinf(best):
            words = {"ha": "center", "va": "center", "size": "small", "transform": axes.get_yaxis_transform()}
            axes.text(0.5, codecs.index(codec), "at any bandwidth", **words)
    for place, (name, found) in enumerate(beside.items(), start=len(codecs)):
        axes.plot([found.low, found.high], [place, place], "s-", color="0.35", linewidth=5, markersize=4)
        axes.annotate(name, (found.high, place), xytext=(6, 0), textcoords="offset points", va="center", size="small")
    axes.axhline(len(codecs) - 0.5, color="0.2", linewidth=1)
    for place in range(1, len(codecs)):
        axes.axhline(place - 0.5, color="0.85", linewidth=0.8, zorder=0.5)
    axes.set(xscale="log", xlabel=label)
    axes.set_yticks(range(len(codecs)), codecs)
    axes.set_ylim(len(codecs) + max(len(LINKS), len(RADIOS)) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _in(unit: float, range_: Range) -> Range:
    return Range(range_.low / unit, range_.high / unit)


def _plain(value: float, _: int) -> str:
    return f"{value:g}"


FIGURE = ResultsFigure(source="cost", read=costs_of, draw=draw)
