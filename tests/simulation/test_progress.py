"""The rounds are shown by a bar on a terminal, by one line elsewhere, and not at all in a notebook."""

import sys
from types import ModuleType

import pytest

from dpcomp.simulation import Callback
from dpcomp.simulation.progress import shown_rounds
from tests.simulation.test_many_clients import made
from tests.simulation.test_simulate import pipeline

pytestmark = pytest.mark.filterwarnings("ignore::dpcomp.DpcompWarning")


def test_without_a_terminal_a_run_is_one_line(capsys):
    done = made(pipeline(), rounds=3, progress=True)
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert shown.err.startswith("made up: 3 rounds in ")
    assert f"test_loss {done.rows[-1]['test_loss']:.4g}" in shown.err


def test_nothing_is_shown_where_that_is_asked_for_or_a_notebook_would_be_filled(capsys, monkeypatch):
    made(pipeline(), progress=False)
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    made(pipeline(), progress=True)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_a_bar_counts_the_rounds(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with shown_rounds(5, "digits", done=3, shown=True) as bar:
        bar.advance({"round": 4})
        bar.advance({"round": 5})
    assert "5/5" in capsys.readouterr().err


def test_a_run_without_a_round_of_its_own_says_nothing(capsys):
    with shown_rounds(3, "digits", done=3, shown=True):
        pass
    assert capsys.readouterr().err == ""


def test_a_run_that_goes_on_says_from_which_round(tmp_path, capsys):
    class Fails(Callback):
        def round(self, run):
            if len(run.rows) == 3:
                raise KeyError

    with pytest.raises(KeyError):
        made(pipeline(), rounds=4, folder=tmp_path, save_every=2, callbacks=[Fails()], progress=True)
    capsys.readouterr()
    made(pipeline(), rounds=4, folder=tmp_path, save_every=2, progress=True)
    assert "made up: 4 rounds, those from round 3 on in " in capsys.readouterr().err
