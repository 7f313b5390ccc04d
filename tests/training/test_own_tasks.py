"""Tasks of users: what is measured of them, the forms of their examples, and what is said of their mistakes."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional

import dpcomp as dp
from dpcomp.core.errors import DpcompWarning, NotPrivate
from dpcomp.simulation import ByClientId, Dirichlet
from dpcomp.simulation.simulate import check_simulation
from dpcomp.training.pytorch import PyTorch
from tests.training.own_tasks import (
    CLEAN,
    INPUTS,
    LABELS,
    PRIVATE,
    Bag,
    Own,
    Sentences,
    TwoInputs,
    double_forms,
    measured,
    run,
    saying,
    sentences,
    single_forms,
    trainer_of,
)

TOKENS = torch.from_numpy(np.random.default_rng(3).integers(0, 5, size=(40, 8)))
GUESSES = torch.where(torch.from_numpy(np.random.default_rng(4).random((40, 8)) < 0.7), TOKENS, (TOKENS + 1) % 5)


def by_position(outputs, targets):
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


class TestAccuracy:
    @pytest.mark.parametrize("length", [3, 5, 8])  # 5: as many places as classes
    def test_of_sequences_counts_tokens_wherever_the_classes_stand(self, length):
        truth, guesses = TOKENS[:, :length], functional.one_hot(GUESSES[:, :length], 5).float()
        right = float((GUESSES[:, :length] == truth).float().mean())
        last = measured(saying(guesses, truth, compare=by_position))
        second = measured(saying(guesses.transpose(1, 2).contiguous(), truth))
        assert last["test_accuracy"] == second["test_accuracy"] == pytest.approx(right)
        assert last["test_loss"] == pytest.approx(second["test_loss"])

    def test_leaves_out_targets_that_the_loss_ignores(self):
        truth = TOKENS.clone()
        truth[:, 4:] = -100
        found = measured(saying(functional.one_hot(GUESSES, 5).float().transpose(1, 2).contiguous(), truth))
        assert found["test_accuracy"] == pytest.approx(float((GUESSES == TOKENS)[:, :4].float().mean()))

    @pytest.mark.parametrize(
        ("make", "targets", "compare"),
        [
            (
                lambda: nn.Linear(6, 1),
                LABELS,
                lambda o, t: functional.binary_cross_entropy_with_logits(o[:, 0], t.float()),
            ),
            (lambda: nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)), INPUTS[:, 0], functional.mse_loss),
            (lambda: nn.Linear(6, 2), INPUTS[:, :2], functional.mse_loss),
        ],
        ids=["one logit", "regression", "two targets"],
    )
    def test_is_not_measured_where_targets_are_no_class_numbers(self, make, targets, compare):
        task = Own(examples=(INPUTS, targets), public=(INPUTS, targets), make=make, compare=compare)
        assert list(measured(task)) == ["test_loss"]


class WithAuc(Own):
    def metrics(self, outputs, targets):
        return {"auc": roc_auc_score(targets, outputs[:, 1] - outputs[:, 0]), "n": len(targets)}


class Sums(Own):
    def metric_sums(self, outputs, targets):
        right = outputs.argmax(1) == targets
        return {"right": right.sum(), "n": len(targets), "by_class": torch.bincount(targets[right], minlength=2)}

    def metrics_of_sums(self, sums):
        return {"share": sums["right"] / sums["n"], "balance": sums["by_class"].min() / sums["by_class"].max()}


class TestMetrics:
    def test_see_all_examples_of_a_set_at_once(self):
        task = WithAuc()
        module = trainer_of(task)
        weights = torch.from_numpy(module.initial_model[:12].reshape(2, 6))
        scores = torch.from_numpy(INPUTS).float() @ weights.T + torch.from_numpy(module.initial_model[12:])
        found = dict(module.evaluate(module.initial_model))
        assert found["test_auc"] == pytest.approx(roc_auc_score(LABELS, scores[:, 1] - scores[:, 0]))
        assert (found["test_n"], "test_accuracy" in found) == (300, False)

    def test_are_made_of_sums_over_batches(self):
        found, plain = measured(Sums()), measured(Own())
        assert found["test_share"] == pytest.approx(plain["test_accuracy"])
        assert 0 < found["test_balance"] < 1

    def test_of_padded_outputs_need_sums(self):
        class Tagged(Sentences):
            def metrics(self, outputs, targets):
                return {"n": len(targets)}

        outputs = nn.Sequential(nn.Embedding(9, 2))
        task = Tagged(
            make=lambda: outputs,
            compare=lambda o, t: o.mean(),
            public=sorted(sentences(300), key=lambda one: len(one[0])),
        )
        with pytest.raises(ValueError, match=r"differ in shape.*metric_sums"):
            measured(task)

    @pytest.mark.parametrize(
        ("returned", "said"),
        [
            (0.5, "return a dict with a number"),
            ({"auc": [1.0, 2.0]}, "one number for each name"),
            ({"loss": 1.0}, "'loss' is taken"),
            ({3: 1.0}, "give a text"),
        ],
    )
    def test_of_another_form_are_refused(self, returned, said):
        class Wrong(Own):
            def metrics(self, outputs, targets):
                return returned

        with pytest.raises(ValueError, match=said):
            measured(Wrong())

    def test_that_fail_are_named_before_the_first_round(self, monkeypatch):
        class Failing(Own):
            def metrics(self, outputs, targets):
                return {"auc": roc_auc_score(targets, outputs)}

        monkeypatch.setattr("dpcomp.training.pytorch.trainer.TorchTrainer.train", None)
        with pytest.raises(ValueError, match=r"metrics\(\) of the task 'own' fails on outputs float32 \(300, 2\)"):
            run(Failing())

    def test_that_fail_later_are_nan_and_the_run_ends(self):
        task = WithAuc()
        trainer = trainer_of(task)
        trainer.evaluate(trainer.initial_model)
        with pytest.warns(DpcompWarning, match="counts as NaN"):
            found = trainer.evaluate(np.full_like(trainer.initial_model, np.nan))
        assert np.isnan(found["test_auc"])

    def test_whose_names_change_keep_the_first_names_and_the_run_ends(self):
        class Changing(Own):
            calls = 0

            def metrics(self, outputs, targets):
                self.calls += 1
                return {"kept": 1.0, "first": 2.0} if self.calls == 1 else {"kept": 3.0, "second": 4.0}

        names, value = (
            r"kept, second for test\(\), and kept, first before",
            "the last test_first is .* although test_loss is",
        )
        with pytest.warns(DpcompWarning, match=value), pytest.warns(DpcompWarning, match=names):
            last = run(Changing(), rounds=2, evaluate_every=1).rows[-1]
        assert last["test_kept"] == 3 and np.isnan(last["test_first"]) and "test_second" not in last

    def test_of_two_kinds_or_of_half_a_kind_are_refused(self):
        class Both(Sums):
            def metrics(self, outputs, targets):
                return {}

        class Half(Own):
            def metric_sums(self, outputs, targets):
                return {}

        with pytest.raises(TypeError, match="keep metrics"):
            measured(Both())
        with pytest.raises(TypeError, match="write both"):
            measured(Half())


class TestForms:
    def test_of_one_input_train_alike(self):
        models = {name: run(Own(examples=form), CLEAN).model for name, form in single_forms().items()}
        first = models.pop("tensors")
        assert len(models) == 5 and all(np.array_equal(model, first) for model in models.values())

    @pytest.mark.parametrize("pipeline", [PRIVATE, CLEAN], ids=["example", "client"])
    def test_of_several_inputs_train_alike(self, pipeline):
        forms = double_forms().items()
        runs = {name: run(Own(examples=form, public=form, make=TwoInputs), pipeline) for name, form in forms}
        first = runs.pop("a tuple")
        assert len(runs) == 4
        for other in runs.values():
            assert np.array_equal(other.model, first.model)
            assert other.rows[0]["test_loss"] == first.rows[0]["test_loss"]

    @pytest.mark.parametrize("pipeline", [PRIVATE, CLEAN], ids=["example", "client"])
    def test_ragged_batches_train_as_ones_of_a_fixed_length_do(self, pipeline):
        ragged, fixed = (run(Sentences(width=width), pipeline, rounds=2) for width in (0, 12))
        assert not np.array_equal(ragged.model, trainer_of(Sentences()).initial_model)
        np.testing.assert_allclose(ragged.model, fixed.model, rtol=1e-5, atol=1e-6)
        assert ragged.rows[-1]["test_accuracy"] == fixed.rows[-1]["test_accuracy"]

    def test_ragged_batches_that_tie_examples_are_refused(self):
        with pytest.raises(NotPrivate, match="padding to the longest"):
            check_simulation(Sentences(make=lambda: Bag(masked=False)), PRIVATE, clients=2, rounds=1)

    def test_ragged_batches_are_held_to_their_examples_in_training_too(self):
        class Mixed(Sentences):
            mixes = False

            def collate(self, examples):
                tokens, labels = super().collate(examples)
                return (tokens.roll(1, 0) if self.mixes else tokens), labels

        task = Mixed()
        trainer = trainer_of(task, PRIVATE)
        memory = PRIVATE.init_client(trainer.layout, dp.PublicSeed(0), client=0)
        task.mixes = True
        with pytest.raises(NotPrivate, match="collate_fn"):
            trainer.train(0, trainer.initial_model, memory, dp.Ledger())

    @pytest.mark.parametrize("public", [None, (INPUTS[:0], LABELS[:0])], ids=["None", "of length 0"])
    def test_without_a_test_set_nothing_is_measured(self, public):
        done = run(Own(public=public))
        assert not [name for name in done.rows[0] if name.startswith("test")]

    def test_a_model_that_forgets_its_seed_has_the_same_first_weights_and_leaves_the_generator(self):
        state = torch.random.get_rng_state()
        one = trainer_of(Own()).initial_model
        assert torch.equal(torch.random.get_rng_state(), state)
        torch.rand(1)
        assert np.array_equal(one, trainer_of(Own()).initial_model) and one.any()


def mistake(said, **members):
    return pytest.param(members, said, id=said)


class TestMistakes:
    @pytest.mark.parametrize("pipeline", [PRIVATE, CLEAN], ids=["example", "client"])
    @pytest.mark.parametrize(
        ("members", "said"),
        [
            mistake(r"the model of the task 'own' fails on inputs float32 \(\d+, 6\)", make=lambda: nn.Linear(5, 2)),
            mistake(r"from 0 to 7 of train\(\): IndexError", examples=(INPUTS, np.r_[LABELS[:-1], 7])),
            mistake("convert the inputs", examples=(torch.from_numpy(INPUTS), LABELS)),
            mistake("different lengths.*inputs 300, targets 299", examples=(INPUTS, LABELS[:-1])),
            mistake("no examples", examples=(INPUTS[:0], LABELS[:0])),
            mistake("of dtype object", examples=(INPUTS.astype(object), LABELS)),
            mistake("of type str", examples=("inputs", "targets")),
            mistake("returned an array of shape", examples=INPUTS),
            mistake("returned DataLoader", examples=torch.utils.data.DataLoader(sentences())),
            mistake(r"Examples of different shapes need a member collate", examples=sentences(), make=Bag),
            mistake("returned a value of shape", compare=lambda o, t: functional.cross_entropy(o, t, reduction="none")),
            mistake("returned builtin_function", make=lambda: torch.relu),
            mistake(r"population of the task 'own' is 300.0", population=300.0),
            mistake(
                "compares every output with every target",
                examples=(INPUTS, INPUTS[:, 0]),
                make=lambda: nn.Linear(6, 1),
                compare=lambda o, t: ((o - t) ** 2).mean(),
            ),
            mistake(
                r"every target.*Let train\(\) return targets of one axis less \(targets\[:, 0\]\), or the model",
                examples=(INPUTS, INPUTS[:, :1]),
                make=lambda: nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)),
                compare=lambda o, t: ((o - t) ** 2).mean(),
            ),
        ],
    )
    def test_are_named_before_anything_is_spent(self, members, said, pipeline):
        with pytest.raises((TypeError, ValueError), match=said):
            check_simulation(Own(**members), pipeline, clients=2, rounds=1)

    def test_of_the_test_set_are_named_before_the_first_round(self, monkeypatch):
        monkeypatch.setattr("dpcomp.training.pytorch.trainer.TorchTrainer.train", None)
        with pytest.raises(ValueError, match=r"inputs float32 \(\d+, 3\).*of test\(\)"):
            run(Own(public=(INPUTS[:, :3], LABELS)))

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"partition": Dirichlet}, "is the class Dirichlet"),
            ({"partition": "IID"}, "has no part"),
            ({"trainer": PyTorch}, "is the class PyTorch"),
            ({"trainer": 0.5}, "has no make_trainer"),
            ({"server": 0.5}, r"simulate\(server=0.5\)"),
            ({"faults": 0.1}, r"simulate\(faults=0.1\)"),
            ({"protocol": "versioned"}, "simulate.protocol='versioned'"),
        ],
    )
    def test_in_the_arguments_of_a_simulation_are_named(self, arguments, said):
        with pytest.raises(TypeError, match=said):
            check_simulation(Own(), CLEAN, clients=2, rounds=1, **arguments)

    def test_a_class_is_no_task(self):
        with pytest.raises(TypeError, match=r"give an instance of it, Own\("):
            check_simulation(Own, CLEAN, clients=2, rounds=1)  # pyright: ignore[reportArgumentType]


class Owned(Own):
    ids = np.array(["b", "a", "c"])[np.arange(300) % 7 % 3]

    def client_ids(self):
        return self.ids


class TestClientIds:
    def test_part_the_examples(self):
        seen = []

        class Noted(ByClientId):
            def part(self, labels, clients, seed):
                seen.extend(super().part(labels, clients, seed))
                return seen

        check_simulation(Owned(), PRIVATE, clients=5, rounds=1, partition=Noted())
        assert [set(Owned.ids[part]) for part in seen] == [{"a"}, {"b"}, {"c"}, set(), set()]
        np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(300))

    @pytest.mark.parametrize(
        ("ids", "clients", "said"),
        [
            (np.arange(300) % 4, 3, "say clients=4"),
            (np.arange(299), 300, "299 rows.*300 examples"),
            (np.ones(300), 3, "float64"),
            (np.ones((300, 2), dtype=int), 3, r"shape \(300, 2\)"),
        ],
    )
    def test_that_do_not_fit_are_refused(self, ids, clients, said, monkeypatch):
        monkeypatch.setattr(Owned, "ids", ids)
        with pytest.raises(ValueError, match=said):
            check_simulation(Owned(), CLEAN, clients=clients, rounds=1, partition=ByClientId())

    def test_are_asked_of_the_task(self):
        with pytest.raises(TypeError, match=r"has no client_ids\(\)"):
            check_simulation(Own(), CLEAN, clients=2, rounds=1, partition=ByClientId())

    def test_dirichlet_needs_class_numbers(self):
        task = Own(examples=(INPUTS, INPUTS[:, 0]), make=lambda: nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)))
        task.compare, task.public = functional.mse_loss, None
        with pytest.raises(ValueError, match=r"the targets are float32 \(300,\)"):
            check_simulation(task, CLEAN, clients=2, rounds=1, partition=Dirichlet(1.0))

    @pytest.mark.parametrize(
        ("parts", "said"),
        [([[0]], "1 clients"), ([[0], [300]], "from 0 to 299"), ([[0.5], [1]], "float64")],
    )
    def test_a_partition_of_ones_own_is_held_to_its_form(self, parts, said):
        class Wrong:
            def part(self, labels, clients, seed):
                return parts

        with pytest.raises(ValueError, match=said):
            check_simulation(Own(), CLEAN, clients=2, rounds=1, partition=Wrong())


def test_adding_a_unit_moves_a_ragged_clipped_sum_by_the_clip_norm_at_most():
    """The trained update of one example more, of the same draws, differs by at most the clip norm."""
    pipeline = dp.Pipeline(mechanism=dp.unsafe("the sum itself", dp.Clip(0.1)))

    def change(examples):
        task = Sentences(examples=examples, population=60)
        trainer = PyTorch(learning_rate=1.0, expected_batch_size=1.0)
        return run(task, pipeline, clients=1, trainer=trainer).model

    examples = sentences()
    moved = np.linalg.norm(change([*examples, (torch.full((30,), 8), 1)]) - change(examples))
    assert 0 < moved <= 0.1 * (1 + 1e-4)
