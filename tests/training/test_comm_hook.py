"""The communication hook of DistributedDataParallel, in two processes."""

import json
import subprocess
import sys

import pytest

import dpcomp as dp
from dpcomp.training.pytorch import comm_hook
from tests.training import two_processes


@pytest.mark.slow
def test_two_processes_train_with_payloads_as_with_an_all_reduce(tmp_path):
    started = [
        subprocess.Popen(
            [sys.executable, two_processes.__file__, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    reports = []
    for process in started:
        printed, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
        reports.append(json.loads(printed))
    for report in reports:
        assert report["lossless"]
        assert report["float16"]
        assert report["share"] < 0.06
        assert report["lost"] == pytest.approx(0, abs=1e-3)
        with_feedback, without = report["error"]
        assert with_feedback < 0.95 * without
        assert report["levels"] == 5
        assert report["finite"] == [True, True, False, True, True, True]
        assert "need the same codec" in report["other codec"]
    assert reports[0]["digest"] == reports[1]["digest"]
    assert reports[0]["after"] == reports[1]["after"]


def test_a_hook_is_refused_before_training():
    with pytest.raises(TypeError, match=r"comm_hook\(codec\)"):
        comm_hook("top")
    with pytest.raises(TypeError, match=r"comm_hook\(feedback\)"):
        comm_hook(dp.Codec(), feedback=None)
    with pytest.raises(ValueError, match="last broadcast"):
        comm_hook(dp.Codec(predict=dp.LastBroadcast()))
