"""Setting: the federation that a benchmark trains, and its privacy."""

from dataclasses import dataclass, replace

from dpcomp.core.checks import real_number, whole_number
from dpcomp.privacy.accounting.epsilon import check_delta
from dpcomp.sparsify import RandomK

BLOCK = 64  # `Rotated` rotates no smaller ones, and sends what is left as float32


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A federation of alike clients, in which each adds the noise to its own updates, and (ε, δ) of the whole run.

    Attributes:
        task: The name of the task, as the command line knows it.
        dimensions: d, the parameters of the task's model.
        held_out: Training examples that are held out, to tune learning rates by.
        clients: Their number; all take part in every round, with one local step.
        rounds: Their number.
        sampling_rate: The probability with which an example is in a step.
        clip_norm: C, the clip norm of an example's gradient.
        epsilon: ε of the run, for adding or removing one example of one client.
        delta: δ.
        seeds: One trial each.
        tuning_seeds: A learning rate is tuned by the mean over so many of the seeds; 0: not at all, so that each method
            has the rate where its tuning would begin.
        dense_rate: Where the tuning of dense updates begins.
        evaluate_every: Rounds between evaluations.
        tail: The share of the last rounds whose models are averaged; what counts is the accuracy of that average.

    Raises:
        TypeError: A number has another type.
        ValueError: A number lies outside its range.
    """

    task: str
    dimensions: int
    held_out: int
    clients: int
    rounds: int
    sampling_rate: float
    clip_norm: float
    epsilon: float
    delta: float
    seeds: tuple[int, ...]
    tuning_seeds: int
    dense_rate: float
    evaluate_every: int
    tail: float = 0.25

    def __post_init__(self):
        for name in ("dimensions", "held_out", "clients", "rounds", "evaluate_every"):
            whole_number(getattr(self, name), f"Setting({name})", least=1)
        whole_number(self.tuning_seeds, "Setting(tuning_seeds)", least=0, most=len(self.seeds))
        for name in ("sampling_rate", "clip_norm", "epsilon", "dense_rate", "tail"):
            if not real_number(getattr(self, name), f"Setting({name})", "a number above 0") > 0:
                raise ValueError(f"Setting({name}={getattr(self, name)!r}): give a number above 0")
        if not self.seeds:
            raise ValueError("Setting(seeds=()): a benchmark runs with one seed at least")
        check_delta(self.delta)

    def fraction(self, share: float) -> float:
        """Return the share of the coordinates, near the given one, that is a multiple of 64, to seven digits."""
        kept = min(max(1, round(share * self.dimensions / BLOCK)), self.dimensions // BLOCK) * BLOCK
        fraction = round(kept / self.dimensions, 7)
        if RandomK(fraction).count(self.dimensions) != kept:
            raise ValueError(f"{kept} of {self.dimensions} coordinates have no fraction of seven digits")
        return fraction

    def quick(self) -> "Setting":
        """Return the setting with two rounds, one seed and nothing tuned: to see that everything runs."""
        return replace(self, rounds=2, seeds=self.seeds[:1], tuning_seeds=0, evaluate_every=2)


DIGITS = Setting(
    task="digits",
    dimensions=12_010,
    held_out=200,
    clients=5,
    rounds=60,
    sampling_rate=0.2,
    clip_norm=1.0,
    epsilon=8.0,
    delta=1e-4,
    seeds=(0, 1, 2),
    tuning_seeds=2,
    dense_rate=2.0,
    evaluate_every=20,
)
FASHION_MNIST = Setting(
    task="fashion_mnist",
    dimensions=26_010,
    held_out=5000,
    clients=10,
    rounds=300,
    sampling_rate=0.02,
    clip_norm=0.1,
    epsilon=4.0,
    delta=1e-5,
    seeds=(0, 1, 2),
    tuning_seeds=1,
    dense_rate=45.0,
    evaluate_every=50,
)
SETTINGS = (DIGITS, FASHION_MNIST)
