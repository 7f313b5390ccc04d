"""Callbacks: what they see, that a run they end has the ε of all rounds, and what the ready ones log."""

from types import SimpleNamespace

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.simulation import Callback, Clipping, MLflow, StopEarly, TensorBoard, WeightsAndBiases
from dpcomp.simulation.callbacks import log
from dpcomp.simulation.callbacks.callback import RunInProgress
from tests.simulation.test_many_clients import Made, made
from tests.simulation.test_simulate import facts, pipeline, run

pytestmark = pytest.mark.filterwarnings("ignore::dpcomp.DpcompWarning")


class Noted(Callback):
    def __init__(self):
        self.calls = []

    def start(self, run):
        self.calls.append(("start", len(run.rows), run.model.copy()))

    def round(self, run):
        with pytest.raises(ValueError, match="read-only"):
            run.model[0] = 1.0
        self.calls.append(("round", len(run.rows), run.model.copy()))

    def end(self, run):
        self.calls.append(("end", len(run.rows), run.model.copy()))
        self.result = run


class StopAt(Callback):
    def __init__(self, rounds):
        self.rounds = rounds

    def round(self, run):
        if len(run.rows) == self.rounds:
            run.stop("enough was seen")


def test_callbacks_are_called_in_their_turn_with_the_models_of_the_rounds():
    noted = Noted()
    done = made(pipeline(), rounds=3, callbacks=[noted])
    assert [(what, rows) for what, rows, _ in noted.calls] == [
        *(("start", 0), ("round", 1), ("round", 2), ("round", 3), ("end", 3)),
    ]
    models = [made(pipeline(), rounds=rounds).model.tobytes() for rounds in (1, 2, 3)]
    assert [model.tobytes() for _, _, model in noted.calls[1:4]] == models
    assert noted.result is done
    assert not noted.calls[0][2].any()  # the first model


def test_a_run_that_goes_on_starts_its_callbacks_with_the_rows_so_far(tmp_path):
    class Fails(Callback):
        def round(self, run):
            if len(run.rows) == 3:
                raise KeyError

    with pytest.raises(KeyError):
        made(pipeline(), rounds=4, folder=tmp_path, save_every=2, callbacks=[Fails()])
    noted = Noted()
    made(pipeline(), rounds=4, folder=tmp_path, save_every=2, callbacks=[noted])
    assert [(what, rows) for what, rows, _ in noted.calls] == [("start", 2), ("round", 3), ("round", 4), ("end", 4)]


@pytest.mark.parametrize("terms", [{}, {"unit": "client"}, {"unit": "client", "trust": "server"}])
def test_a_run_that_is_stopped_has_the_epsilon_of_all_its_rounds(terms):
    chosen = pipeline(rate=0.5 if terms else None, **terms)
    whole = made(chosen, rounds=9)
    stopped = made(chosen, rounds=9, callbacks=[StopAt(4)])
    assert len(stopped.rows) == 4 and facts(stopped)[:3] == facts(whole)[:3]
    assert facts(stopped)[3] == facts(whole)[3] | {"epsilon": stopped.guarantee.epsilon}  # no number that is too small
    assert whole.rows[-1]["epsilon"] == whole.guarantee.epsilon
    if terms.get("unit") == "client" and not terms.get("trust"):  # who was drawn so far may be drawn in all that follow
        assert stopped.guarantee.epsilon >= whole.guarantee.epsilon
    else:
        assert stopped.guarantee.epsilon == whole.guarantee.epsilon
        assert stopped.guarantee.steps == 9
    assert stopped.guarantee.epsilon > made(chosen, rounds=4).guarantee.epsilon
    assert "of which 5 did not come" in str(stopped.guarantee)
    assert "SEEDED" in str(stopped.guarantee) or not any("SEEDED" in str(each) for each in whole.guarantee.assumptions)
    assert (stopped.stopped, whole.stopped) == ("enough was seen", "")


def test_a_stop_in_the_last_round_changes_nothing():
    assert made(pipeline(), rounds=3, callbacks=[StopAt(3)]).guarantee == made(pipeline(), rounds=3).guarantee


def test_a_stopped_run_is_evaluated_in_its_last_round_and_averages_what_came():
    stopped = made(pipeline(), rounds=10, evaluate_every=10, tail=0.5, callbacks=[StopAt(7)])
    assert "test_loss" in stopped.rows[-1] and len(stopped.rows) == 7
    models = [made(pipeline(), rounds=rounds).model for rounds in (6, 7)]
    np.testing.assert_array_equal(stopped.tail_model, np.mean(models, axis=0, dtype=np.float64).astype(np.float32))
    assert made(pipeline(), rounds=10, tail=0.2, callbacks=[StopAt(7)]).tail_model is None


def test_a_stopped_run_stays_stopped_in_its_folder(tmp_path):
    given = {"rounds": 5, "folder": tmp_path}
    one, two = made(pipeline(), callbacks=[StopAt(2)], **given), made(pipeline(), **given)
    assert one.rows == two.rows and one.guarantee == two.guarantee and one.stopped == two.stopped == "enough was seen"


def test_a_run_stops_once_it_has_stopped_to_improve():
    def stops_at(losses, **given):
        chosen = StopEarly(column="loss", **given)
        for number in range(1, len(losses) + 1):
            rows = tuple({} if loss is None else {"loss": loss} for loss in losses[:number])
            seen = RunInProgress(
                task="", rounds=99, rows=rows, probed=(), layout=dp.Layout.of(1), model=np.zeros(1, np.float32)
            )
            chosen.round(seen)
            if seen.stopped:
                return number
        return None

    assert stops_at([5, 4, 3, 3, 3.5, 9], patience=3) == 6
    assert stops_at([5, 4, None, 3, None, 3, 3.5, None, 9], patience=3) == 9
    assert stops_at([5, 4, 3, 2, 1], patience=1) is None
    assert stops_at([0.5, 0.6, 0.6], patience=1, best="highest") == 3
    assert stops_at([5, float("nan"), float("nan")], patience=2) == 3
    assert stops_at([5, 6, 5.5, 4, 7, 7], patience=3) is None
    for wrong in ({"patience": 0}, {"best": "least"}):
        with pytest.raises(ValueError):
            StopEarly(column="loss", **wrong)


@pytest.mark.parametrize("wrong", [Noted, Noted(), [Noted], [lambda run: None], None])
def test_what_is_no_callback_is_refused_before_anything_is_played(wrong):
    if isinstance(wrong, Noted):
        made(pipeline(), rounds=1, callbacks=wrong)  # a single one is meant
        return
    with pytest.raises(TypeError, match="callbacks"):
        made(pipeline(), trainer=SimpleNamespace(), callbacks=wrong)


def test_a_stop_says_why():
    with pytest.raises(ValueError, match="reason"):
        RunInProgress(
            task="", rounds=1, rows=(), probed=(), layout=dp.Layout.of(1), model=np.zeros(1, np.float32)
        ).stop("")


class Tool:
    """In place of TensorBoard, MLflow or wandb: notes what it is called with."""

    def __init__(self):
        self.noted, self.summary = [], {}

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.noted.append((name, args, kwargs))
            return None if name == "active_run" else self

        return call


@pytest.fixture
def tool(monkeypatch):
    made_up = Tool()
    monkeypatch.setattr(log, "import_module", lambda name: made_up)
    return made_up


READY = [TensorBoard(folder="logs"), MLflow(experiment="mine"), WeightsAndBiases(project="mine")]


@pytest.mark.parametrize("ready", READY, ids=lambda ready: type(ready).__name__)
def test_the_ready_ones_log_what_may_be_published_and_the_guarantee(ready, tool):
    done = made(pipeline("client", "server"), rounds=2, callbacks=[ready])
    logged = [(name, args, kwargs) for name, args, kwargs in tool.noted if name in ("add_scalar", "log_metrics", "log")]
    columns = {args[0] for name, args, _ in logged if name == "add_scalar"}
    columns |= {column for name, args, _ in logged if name != "add_scalar" for column in args[0]}
    assert columns == {"test_loss", "epsilon"}  # under a trusted server the rest depends on a secret cohort
    said = str(tool.noted) + str(tool.summary)
    assert str(done.guarantee) in said
    steps = {kwargs.get("step", args[-1]) for _, args, kwargs in logged}
    assert steps == {1, 2}


@pytest.mark.parametrize("ready", READY, ids=lambda ready: type(ready).__name__)
def test_columns_that_are_named_are_logged_whatever_they_are(ready, tool):
    ready = type(ready)(**{"folder": "logs"} if isinstance(ready, TensorBoard) else {}, columns=("participants",))
    made(pipeline("client", "server"), rounds=1, callbacks=[ready])
    assert "participants" in str(tool.noted) and "test_loss" not in str(tool.noted)


@pytest.mark.parametrize("ready", READY, ids=lambda ready: type(ready).__name__)
def test_the_ready_ones_cost_no_dependency_and_say_what_to_install(ready, monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(log, "import_module", missing)
    played = []
    monkeypatch.setattr(Made, "train", lambda *_: played.append(1))
    with pytest.raises(dp.MissingExtra, match=r"pip install (tensorboard|mlflow|wandb)"):
        made(pipeline(), callbacks=[ready])
    assert not played


def test_what_probes_see_is_not_logged():
    seen = Noted()
    seen.round = lambda run: seen.calls.append(run.released)
    done = run(pipeline(), rounds=1, probes=(Clipping(),), callbacks=[seen])
    assert {"clipped_fraction", "seconds"} <= set(done.rows[0]) and "clipped_fraction" not in seen.calls[1]
    assert seen.calls[1]["test_loss"] == done.rows[0]["test_loss"]


def test_a_run_cannot_be_stopped_before_its_first_round(tmp_path):
    class Stops(Callback):
        def start(self, run):
            run.stop("at once")

    with pytest.raises(ValueError, match=r"Stops .*run\.stop\('at once'\) in start\(\)"):
        made(pipeline(), rounds=2, folder=tmp_path, callbacks=[Stops()])
    assert not list(tmp_path.glob("round-*"))


def test_a_column_that_is_never_measured_is_refused_before_the_first_round():
    noted = Noted()
    with pytest.raises(ValueError, match=r"StopEarly\(column='test_auc'\) .* measures test_loss"):
        made(pipeline(), rounds=2, callbacks=[noted, StopEarly(column="test_auc")])
    assert [what for what, *_ in noted.calls] == ["start"]
