import math

import pytest

from analysis.cost.break_even import THIS_MACHINE, cost_summary, costs_by_device, measured_costs
from analysis.cost.devices import DEVICES, SERVER_WATTS
from analysis.cost.model import Range

D = 1_000_000
FREE = 8 * 4 * D  # bits


def a_report(seed, factor=1.0):
    columns = {
        "codec": ["float32", "8 bits, packed", "4 bits", "top 1 %, 4 bits"],
        "payload_bytes": [4 * D + 69, D, D // 4, 10_000],
        "relative_squared_error": [0.0, 1e-4, 0.1, 0.9],
        "encode_seconds": [0.02, 0.01, 0.03, 0.005],
        "encode_copies": [40.0, 20.0, 60.0, 10.0],
        "encode_peak_bytes": [16 * D, 8 * D, 8 * D, 4 * D],
        "decode_seconds": [0.01, 0.01, 0.02, 0.001],
        "decode_copies": [20.0, 20.0, 40.0, 2.0],
        "decode_peak_bytes": [12 * D, 8 * D, 8 * D, 4 * D],
    }
    for name in ("encode_seconds", "encode_copies"):
        columns[name] = [factor * value for value in columns[name]]
    return {"config": {"name": "a"}, "seed": seed, "coordinates": D, "costs": columns}


def test_the_summary_is_as_computed_by_hand():
    table = cost_summary([a_report(0), a_report(1), a_report(2)]).set_index("codec")
    assert table.loc["4 bits", "ratio"] == 16
    assert table.loc["4 bits", "encode_peak"] == 2
    assert table.loc["4 bits", "mbits"] == pytest.approx((FREE + 8 * 69 - 2 * D) / 0.01 / 1e6)
    assert table.loc["4 bits", "mbits_of_free"] == pytest.approx(30e6 / 0.03 / 1e6)
    assert table.loc["4 bits", "mbits_of_packed"] == pytest.approx(6e6 / 0.02 / 1e6)
    assert table.loc["8 bits, packed", "mbits"] == math.inf
    assert math.isnan(table.loc["8 bits, packed", "mbits_of_packed"])
    assert table.loc["top 1 %, 4 bits", "mbits_of_packed"] == math.inf
    assert table.loc["float32", ["mbits", "mbits_of_free", "mbits_of_packed"]].isna().all()


def test_ranges_span_the_seeds_here_and_a_devices_memory_there():
    table = costs_by_device(measured_costs([a_report(0), a_report(1, factor=2.0)])).set_index(["codec", "device"])
    here = table.loc["4 bits", THIS_MACHINE]
    assert Range(here["encode_seconds_low"], here["encode_seconds_high"]) == Range(0.03, 0.06)
    assert here["mbits_low"] == pytest.approx(500) and here["mbits_high"] == pytest.approx(1000)
    assert here["packed_mbits_low"] == pytest.approx(150) and here["packed_mbits_high"] == pytest.approx(300)
    assert here["nanojoules_low"] == pytest.approx(SERVER_WATTS.low * 0.03 / 30e6 * 1e9)
    assert here["nanojoules_high"] == pytest.approx(SERVER_WATTS.high * 0.06 / 30e6 * 1e9)
    for device in DEVICES:
        row = table.loc["4 bits", device.name]
        assert row["encode_seconds_low"] == pytest.approx(60 * 4 * D / device.copied_bytes_per_second.high)
        assert row["encode_seconds_high"] == pytest.approx(120 * 4 * D / device.copied_bytes_per_second.low)
        assert row["mbits_low"] == pytest.approx(30 / row["encode_seconds_high"])
        assert math.isnan(row["nanojoules_low"]) == (device.watts is None)


def test_no_report_says_what_to_run():
    with pytest.raises(ValueError, match="study cost first"):
        measured_costs([])
