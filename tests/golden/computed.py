"""What the code computed before its folders were made, in words that no renaming changes.

`golden.json` was written by the commit before. Its cases describe themselves: budgets and ledgers with their ε, codecs
with digests of every body of a few rounds, seeded simulations, numbers of the results.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dpcomp as dp
from dpcomp.federated import Decay, Drop, ServerOptimizer, Weigh
from dpcomp.lab.tasks import digits
from dpcomp.simulation import Dirichlet, Faults, Versioned, simulate
from dpcomp.simulation.probes import Clipping, TopKOverlap
from dpcomp.training.pytorch import PyTorch
from dpcomp.training.schedule import Cosine
from dpcomp.wire.headers import unsealed
from dpcomp.wire.update import with_claim

SEED, CLIENTS = 7, 2
LAYOUTS: dict[str, dict[str, tuple[int, ...]]] = {
    "small": {"conv": (8, 3, 3, 3), "constant": (8,), "empty": (0,), "dense": (30, 40), "fading": (30,), "scale": ()},
    "large": {"first": (70_000,), "empty": (0, 5), "second": (300, 200), "last": (17,)},
}
SHIFTS = {"conv": 3, "constant": 2, "dense": 5, "fading": 8, "scale": 0, "first": 4, "second": 6, "last": 1}

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("golden.json").read_text(encoding="utf-8"))
ROUNDINGS = {"nearest": dp.Nearest, "stochastic": dp.Stochastic, "dithered": dp.Dithered}
ENTROPIES = {"range": dp.RangeCoder, "packed": dp.FixedWidth}
OTHERS = {"sign": dp.Sign, "ternary": dp.Ternary, "rotated": dp.Rotated, "float16": dp.Float16, "float32": dp.Float32}


def bits_of(spec: Any) -> Any:
    """4 · ["equal", 4] · ["waterfill", 2.5] · ["waterfill", 3, clients] · ["step", 0.01]."""
    if isinstance(spec, int):
        return spec
    kind, *values = spec
    if kind == "waterfill":
        return dp.Waterfill(values[0], clients=values[1]) if len(values) > 1 else dp.Waterfill(values[0])
    return {"equal": dp.Equal, "step": dp.FixedStep}[kind](values[0])


def quantizer_of(spec: Any) -> Any:
    """None · ["uniform", bits, rounding] · ["sign"], and so on."""
    if spec is None:
        return None
    if spec[0] == "uniform":
        return dp.Uniform(bits_of(spec[1]), rounding=ROUNDINGS[spec[2]]())
    return OTHERS[spec[0]]()


def sparsifier_of(spec: Any) -> Any:
    """None · ["top", share, "vector" or "layer"] · ["random", share]."""
    if spec is None:
        return None
    return dp.TopK(spec[1], per=spec[2]) if spec[0] == "top" else dp.RandomK(spec[1])


def codec_of(spec: dict[str, Any]) -> Any:
    return dp.Codec(
        predict=dp.LastBroadcast() if spec.get("predict") else None,
        sparsify=sparsifier_of(spec.get("sparsify")),
        quantize=quantizer_of(spec.get("quantize")),
        entropy=ENTROPIES[spec.get("entropy", "range")](),
    )


def pipeline_of(case: dict[str, Any], noise_multiplier: float | None = None, rate: Any = "of the case") -> Any:
    z = case["noise_multiplier"] if noise_multiplier is None else noise_multiplier
    rate = case.get("sampling_rate") if rate == "of the case" else rate
    before = [dp.RandomK(case["random_k_before_clip"])] if case.get("random_k_before_clip") else []
    before += [dp.TopK(case["top_k_before_clip"])] if case.get("top_k_before_clip") else []
    stages = (*before, dp.Clip(case["clip_norm"]), dp.Gaussian(z))
    return dp.Pipeline(
        mechanism=dp.unsafe("golden data", *stages) if case.get("unsafe") else stages,
        codec=codec_of(case.get("codec", {})),
        downlink=codec_of(case["downlink"]) if case.get("downlink") is not None else None,
        sampling=None if rate is None else dp.Poisson(rate),
        feedback=case.get("feedback", True),
        unit=case["unit"],
        trust=case["trust"],
    )


def planned(case: dict[str, Any]) -> tuple[float, str]:
    """(ε, accountant) of so many steps of one pipeline."""
    found = pipeline_of(case).guarantee(case["steps"], case["delta"])
    return found.epsilon, found.accountant


def spent(case: dict[str, Any]) -> tuple[float, str]:
    """(ε, accountant) of what stands in a ledger, each charge at an address of its own."""
    with dp.Ledger() as ledger:
        for place, (noise_multiplier, rate, steps) in enumerate(case["charges"]):
            client = dp.SERVER if case["trust"] == "server" else 0
            ledger.charge(pipeline_of(case, noise_multiplier, rate).cost, dp.Address(1, client, place), steps=steps)
        found = ledger.guarantee(case["delta"])
    return found.epsilon, found.accountant


def calibrated(case: dict[str, Any]) -> tuple[float, float, str]:
    """(noise multiplier, ε, accountant) of what `calibrate` finds."""
    found = dp.calibrate(
        lambda z: pipeline_of(case, z), epsilon=case["target"], delta=case["delta"], steps=case["steps"]
    )
    guarantee = found.guarantee(case["steps"], case["delta"])
    return found.mechanism[-1].noise_multiplier, guarantee.epsilon, guarantee.accountant


class Exchange:
    """One server and CLIENTS clients."""

    def __init__(self, case: dict[str, Any], layout: dict[str, tuple[int, ...]]):
        self.case, self.pipeline = case, pipeline_of(case)
        self.clients = [
            self.pipeline.init_client(layout, dp.PublicSeed(SEED), client=number) for number in range(CLIENTS)
        ]
        self.server = self.pipeline.init_server(layout, dp.PublicSeed(SEED))
        self.layout = self.server.layout

    def round(self, vectors: list[np.ndarray]) -> tuple[list[bytes], bytes, np.ndarray]:
        """A round: the bodies of the uplinks, that of the downlink, and the step that all ends then take."""
        uplinks, updates = [], []
        for number, vector in enumerate(vectors):
            memory = self.clients[number]
            support = self.pipeline.empty_total(memory).support  # everywhere, or RandomK's of the mechanism
            update = with_claim(
                dp.Update(
                    values=vector[support.indices(len(vector))],
                    layout=self.layout,
                    address=memory.address,
                    support=support,
                    noise_stddev=self.case.get("noise_stddev"),
                ),
                self.pipeline.claim,
            )
            payload, self.clients[number] = self.pipeline.send(update, memory)
            received, self.server = self.pipeline.receive(payload, self.server)
            uplinks.append(bytes(unsealed(payload).body))
            updates.append(received)
        mean = (sum(update.dense().astype(np.float64) for update in updates) / len(updates)).astype(np.float32)
        broadcast, self.server = self.pipeline.broadcast(
            updates[0].derive(mean) if self.case.get("mean_on_support") else mean, self.server
        )
        self.clients = [self.pipeline.follow(broadcast, memory) for memory in self.clients]
        steps = [memory.step.dense() for memory in (self.server, *self.clients)]
        assert all(step.tobytes() == steps[0].tobytes() for step in steps), "the ends disagree"
        return uplinks, bytes(unsealed(broadcast).body), steps[0]


TOP_4_BITS = {"sparsify": ["top", 0.05, "vector"], "quantize": ["uniform", 4, "nearest"]}
BITS_4, BITS_8 = {"quantize": ["uniform", 4, "nearest"]}, {"quantize": ["uniform", 8, "nearest"]}
EXAMPLE = {"unit": "example", "trust": "nobody", "clip_norm": 1.0, "noise_multiplier": 1.0, "sampling_rate": 0.25}
CLIENT = {"unit": "client", "trust": "nobody", "clip_norm": 0.5, "noise_multiplier": 0.5}
TRUSTED = {"unit": "client", "trust": "server", "clip_norm": 0.5, "noise_multiplier": 0.5, "sampling_rate": 0.5}
BAD_WEATHER = {
    "drop": 0.1,
    "duplicate": 0.1,
    "reorder": 0.1,
    "corrupt": 0.05,
    "crash": 0.05,
    "absence": 0.05,
    "absence_rounds": 3,
    "server_restart": 0.1,
}
# name → (the pipeline's case, arguments of `simulate`)
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "example, nobody: top-k, feedback, 4 bits": (
        EXAMPLE | {"codec": TOP_4_BITS},
        {"trainer": PyTorch(local_steps=2, learning_rate=2.0)},
    ),
    "client, nobody: local momentum": (
        CLIENT | {"codec": BITS_8},
        {"trainer": PyTorch(local_steps=2, learning_rate=0.1, momentum=0.9)},
    ),
    "client, server: Poisson 0.5, server momentum": (
        TRUSTED | {"codec": BITS_8},
        {
            "trainer": PyTorch(local_steps=2, learning_rate=0.5),
            "server": ServerOptimizer(learning_rate=0.5, momentum=0.9, behind_feedback=True),
        },
    ),
    "example, nobody: RandomK before the clip": (
        EXAMPLE | {"codec": BITS_4, "random_k_before_clip": 0.1},
        {"trainer": PyTorch(local_steps=1, learning_rate=4.0)},
    ),
    "example, nobody: faults": (
        EXAMPLE | {"codec": TOP_4_BITS},
        {"trainer": PyTorch(local_steps=2, learning_rate=2.0), "faults": Faults(**BAD_WEATHER)},
    ),
    "example, nobody: many faults, late updates weighed, old residuals decayed": (
        EXAMPLE | {"codec": TOP_4_BITS},
        {
            "trainer": PyTorch(local_steps=1, learning_rate=2.0),
            "protocol": Versioned(late_policy=Weigh(max_age=2), absence_policy=Decay(2.0)),
            "faults": Faults(
                **BAD_WEATHER | {"drop": 0.3, "reorder": 0.3, "crash": 0.3, "absence": 0.3, "server_restart": 0.5},
                patience=6,
            ),
        },
    ),
    "example, nobody: allocator, Dirichlet, probes, schedule, some clients": (
        EXAMPLE | {"codec": {"quantize": ["uniform", ["waterfill", 3.5], "dithered"]}, "feedback": False},
        {
            "trainer": PyTorch(
                local_steps=1,
                learning_rate=Cosine(peak=2.0, rounds=6),
                expected_batch_size=100.0,
                physical_batch_size=64,
            ),
            "partition": Dirichlet(0.5),
            "participation": dp.Poisson(0.75),
            "probes": (TopKOverlap(0.05), Clipping()),
            "evaluate_every": 2,
        },
    ),
    "client, nobody: late updates weighed, old residuals decayed, prediction, faults": (
        CLIENT | {"codec": TOP_4_BITS | {"predict": True}, "downlink": BITS_8, "sampling_rate": 0.75},
        {
            "trainer": PyTorch(local_steps=1, learning_rate=0.5, local_sampling=dp.Poisson(0.2)),
            "protocol": Versioned(late_policy=Weigh(max_age=2), absence_policy=Decay(2.0)),
            "faults": Faults(**BAD_WEATHER),
        },
    ),
    "client, server: faults": (
        TRUSTED | {"codec": TOP_4_BITS, "downlink": {}},
        {
            "trainer": PyTorch(local_steps=1, learning_rate=0.5),
            "protocol": Versioned(absence_policy=Drop()),
            "faults": Faults(**BAD_WEATHER),
        },
    ),
    "example, nobody: unsafe, TopK before the clip": (
        EXAMPLE | {"codec": BITS_4, "top_k_before_clip": 0.1, "noise_multiplier": 0.0, "unsafe": True},
        {"trainer": PyTorch(local_steps=1, learning_rate=1.0)},
    ),
}
COMMON = {"clients": 4, "rounds": 6, "delta": 1e-4, "seed": 3, "evaluate_every": 1, "progress": False}
NOT_COMPARED = {"seconds"}  # columns of a run's rows


def run_of(name: str) -> dict[str, Any]:
    case, arguments = RUNS[name]
    torch.set_num_threads(1)
    run = simulate(digits(), pipeline_of(case), **{**COMMON, **arguments})
    return {
        "model": sha(run.model.tobytes()),
        "coordinates": len(run.model),
        "layout": sha(json.dumps([[name, list(shape)] for name, shape in run.layout.shapes]).encode()),
        "rows": [{key: plain(value) for key, value in row.items() if key not in NOT_COMPARED} for row in run.rows],
        "guarantee": str(run.guarantee),
        "epsilon": repr(float(run.guarantee.epsilon)),
        "probed": list(run.probed),
    }


def epsilon_of(case: dict[str, Any]) -> dict[str, str]:
    """What the code says to the case: the results that stand beside its description."""
    if "target" in case:
        noise_multiplier, epsilon, accountant = calibrated(case)
        return {
            "found_noise_multiplier": repr(float(noise_multiplier)),
            "epsilon": repr(float(epsilon)),
            "accountant": accountant,
        }
    epsilon, accountant = spent(case) if "charges" in case else planned(case)
    return {"epsilon": repr(float(epsilon)), "accountant": accountant}


def bodies_of(case: dict[str, Any]) -> dict[str, Any]:
    """SHA-256 and length of all bodies, round by round, and the SHA-256 of the steps that all ends took, end to end."""
    layout, taken, rounds = LAYOUTS[case.get("layout", "small")], b"", []
    parties = Exchange({"unit": "example", "trust": "nobody", "clip_norm": 1.0, "noise_multiplier": 1.0} | case, layout)
    for number in range(case.get("rounds", 3)):
        vectors = [vector_of(layout, number, client) for client in range(CLIENTS)]
        uplinks, downlink, step = parties.round(vectors)
        rounds.append([f"{sha(body)} {len(body)}" for body in (*uplinks, downlink)])
        taken += step.tobytes()
    return {"bodies": rounds, "steps": sha(taken)}


def vector_of(layout: dict[str, tuple[int, ...]], number: int, client: int) -> np.ndarray:
    """An update of integers alone, with heavy tails: three parts that stay over rounds, and one of the round's own.

    `constant` holds one magnitude in many places; `fading` is zero in the second round.
    """
    parts = []
    for place, (name, shape) in enumerate(layout.items()):
        n = math.prod(shape)
        whole = 3 * _squares(n, 1000 + place) + _squares(n, 100 * number + 10 * client + place)
        if name == "constant":
            whole = (2**20 + number) * (-1) ** np.arange(n, dtype=np.int64)
        if name == "fading" and number == 1:
            whole = np.zeros(n, dtype=np.int64)
        parts.append(whole.astype(np.float64) * 2.0 ** -(32 + SHIFTS.get(name, 0)))
    return np.concatenate(parts).astype(np.float32)


def _squares(n: int, stream: int) -> np.ndarray:
    """n of m·|m|, m in [−2¹⁵, 2¹⁵), from SplitMix64's mixer on counters."""
    with np.errstate(over="ignore"):
        z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64((stream + 1) * 0xD1342543DE82EF95 % 2**64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    m = (z >> np.uint64(48)).astype(np.int64) - 2**15
    return m * np.abs(m)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def plain(value: Any) -> int | float:
    """As JSON has it; whole numbers stay whole, floats have all their digits."""
    return int(value) if isinstance(value, (int, np.integer)) else float(value)
