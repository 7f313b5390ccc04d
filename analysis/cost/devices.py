"""Published figures of devices, radios and uplinks, each with its source; a range spans what the sources report.

Memory: tinymembench's memcpy on one core, from the logs of github.com/ThomasKaiser/sbc-bench (commit 53f7951,
results/ID.txt). Boards: watts from github.com/geerlingguy/sbc-reviews (commit 968b675, web/data/results.yml), at the
wall, (all four cores busy − idle) ÷ 4, so including what memory and power supply take more under load.

No phone is among them: a prime core of the Snapdragon 865 copies 14.5 GB/s (sbc-bench 49kx), more than the server's
core of the measurements, so that a model of copies would have it code entropies faster than that core, which nothing
supports.
"""

from analysis.cost.model import Device, Link, Radio, Range

SERVER_WATTS = Range(1.1, 3.7)
"""Power of a server's busy thread beyond an idle one: whole servers under SPECpower_ssj2008, 2017 to 2024, ÷ threads.

Source: github.com/cloud-carbon-footprint/ccf-coefficients (commit b0032d9), 100 % − idle by microarchitecture.
"""

DEVICES = (
    Device(
        name="Pi Zero 2 W",
        copied_bytes_per_second=Range(1.04e9, 1.32e9),
        watts=None,
        source="sbc-bench 3Dfo, 3E85, 3DeL",
    ),
    Device(
        name="Pi 4 B",
        copied_bytes_per_second=Range(2.24e9, 2.78e9),
        watts=Range(0.85, 1.4),
        source="sbc-bench 1MFf, 3EgS, 3Gia, 3N94, 3F9C, 3OBF, 3InF; sbc-reviews: idle 1.6 W, stress 5.0 W, HPL 7.2 W",
    ),
    Device(
        name="Pi 5",
        copied_bytes_per_second=Range(4.8e9, 6.03e9),
        watts=Range(0.91, 2.75),
        source="sbc-bench Au3jaA, 8-NK; idle 3.8 W, cpuminer 7.44 W in Au3jaA; sbc-reviews: idle 2.8 W, HPL 13.8 W",
    ),
)

RADIOS = tuple(
    Radio(
        name=name,
        joules_per_bit=joules_per_bit,
        source="slope of a least-squares line of a phone's power on its uplink's throughput, Verizon, over seconds and "
        "over the means of each target rate, so without base power; from MN-Transfer_combined.csv of Narayanan et al. "
        "(SIGCOMM 2021, 10.1145/3452296.3472923), github.com/SIGCOMM21-5G/artifact (commit 35aaf28)",
    )
    for name, joules_per_bit in (
        ("5G mmWave", Range(8.9e-9, 9.2e-9)),
        ("5G low band", Range(32.2e-9, 32.2e-9)),
        ("LTE", Range(76.7e-9, 79.5e-9)),
    )
)

LINKS = (
    Link(
        name="4G",
        bits_per_second=Range(6e6, 20e6),
        source="Huang et al. (MobiSys 2012), abstract: median; Cellsmart 2022, by capacitymedia.com: 31.27 ÷ 1.55",
    ),
    Link(
        name="5G",
        bits_per_second=Range(8.8e6, 31.3e6),
        source="Opensignal, USA July 2021, slowest operator, by cadeka.com; Cellsmart 2022, world mean, by "
        "capacitymedia.com",
    ),
    Link(
        name="home",
        bits_per_second=Range(9.8e6, 48.4e6),
        source="Ofcom, UK March 2021, median, by ispreview.co.uk; Ookla, world, August 2024, on datahub.io",
    ),
    Link(
        name="WiFi",
        bits_per_second=Range(24.5e6, 268e6),
        source="sbc-reviews, iperf in the local network: Pi 3 B+, 4, 5 and 500",
    ),
)
