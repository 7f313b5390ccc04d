"""Tables of the scrambling study: what payloads spend, how supports change, what a share of the energy takes.

All are means over a sequence of rounds but its first, which has none before it. `clean` is the recorded sum itself,
`noisy` what a client releases where the noise stands first, `sent` what the payload's support really is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int64

import dpcomp as dp
from analysis.measures.efficiency import compression_ratio, encoded_bytes
from analysis.measures.payload_rate import PayloadRate
from analysis.measures.supports import captured_energy, smallest_support, support_overlap
from analysis.theory.moving_top_k import SelectionProbabilities
from dpcomp.core.public_context import PublicContext
from dpcomp.sparsify.top_k_indices import top_k_indices
from experiments.studies.recorded_updates import Rounds
from experiments.studies.replay import Sent, Setting, released, session


def payloads(rounds: Rounds, settings: Mapping[float, Sequence[Setting]]) -> pd.DataFrame:
    """Make a table with a row a setting and link: `Setting`'s fields, means of `PayloadRate`'s, and of the sent support

    sent_overlap: with the support before; sent_recall: of the clean top k; captured_energy: of the clean sum. Where a
    residual is kept, the rounds of the warmup are sent too, and not measured.
    """
    clean, rows = rounds.warm.vectors, []
    tops = {k: [top_k_indices(vector, k) for vector in clean] for k in _sizes(rounds, settings)}
    for group in settings.values():
        releases: dict[Any, list[dp.Update]] = {}
        for setting in group:
            through = rounds if setting.feedback else rounds.warm
            needed = (setting.pipeline(rounds.clip_norm).mechanism, through.warmup)
            if setting.trust == "nobody" and needed not in releases:
                releases[needed] = released(setting, through)
            every = session(setting, through, releases.get(needed, []))
            sent = [
                replace(each, number=each.number - through.warmup) for each in every if each.number >= through.warmup
            ]
            for link in dict.fromkeys(each.link for each in sent):
                chosen = [each for each in sent if each.link == link]
                rows.append(asdict(setting) | {"link": link} | _means(chosen, clean, tops))
    return pd.DataFrame(rows)


def supports(rounds: Rounds, densities: Sequence[float], noise_multipliers: Sequence[float]) -> pd.DataFrame:
    """Make a table with a row a density and noise multiplier, of whole vectors before any codec: measured and expected.

    clean_overlap, noisy_overlap: of a vector's own top k with that of the round before. recall, energy: of the clean
    top k, and of the clean energy, in the noisy top k. expected_...: by `SelectionProbabilities`, from the clean
    vectors alone; expected_index_bits: a kept coordinate, layer by layer. still_overlap: if the clean vector stood
    still.
    """
    clean, rows, d = rounds.vectors, [], rounds.layout.size
    for noise in noise_multipliers:
        setting = _noise_first(noise, bits=4)
        noisy = [update.dense() for update in released(setting, rounds)]
        for density in densities:
            k = dp.TopK(density).count(d)
            own, found = ([top_k_indices(vector, k) for vector in each] for each in (clean, noisy))
            expected = [
                SelectionProbabilities.of(vector, k=k, noise_stddev=noise * rounds.clip_norm) for vector in clean
            ]
            later = list(zip(clean, own, found, expected, strict=True))[1:]
            rows.append(
                {
                    "density": density,
                    "noise_multiplier": noise,
                    "clean_overlap": _overlap(own),
                    "noisy_overlap": _overlap(found),
                    "recall": np.mean([support_overlap(a, b) for _, a, b, _ in later]),
                    "energy": np.mean([captured_energy(vector, dp.Listed(b)) for vector, _, b, _ in later]),
                    "expected_overlap": np.mean([one.overlap(other) for one, other in pairwise(expected)]),
                    "expected_index_bits": np.mean(
                        [one.index_bits(other, rounds.layout.edges) for one, other in pairwise(expected)]
                    ),
                    "still_overlap": np.mean([each.overlap(each) for *_, each in later]),
                    "expected_recall": np.mean([each.recall for *_, each in later]),
                    "expected_energy": np.mean([each.captured_energy for *_, each in later]),
                }
            )
    return pd.DataFrame(rows)


def energies(rounds: Rounds, shares: Sequence[float], noise_multipliers: Sequence[float], bits: int) -> pd.DataFrame:
    """Make a table with a row an order, noise multiplier and share of clean energy: the density and bytes it takes.

    Noise first: the noisy vector's smallest top k that holds the share, told by its change from the round before.
    Support first: a public random support of that share of the coordinates, whose energy is the share on average.
    """
    clean, rows = rounds.vectors, []
    for noise in noise_multipliers:
        setting = _noise_first(noise, bits)
        codec = dp.Codec(quantize=dp.Uniform(bits))
        noisy = [update.dense() for update in released(setting, rounds)]
        for share in shares:
            listed = [smallest_support(*pair, share) for pair in zip(clean, noisy, strict=True)]
            seeded = [
                dp.Seeded(rounds.seed.key("mask", number), dp.RandomK(share).count(rounds.layout.size))
                for number in range(len(clean))
            ]
            sizes = {
                "noise first": [
                    encoded_bytes(codec, vector, support, PublicContext(layout=rounds.layout, previous_support=last))
                    for vector, (last, support) in zip(noisy[1:], pairwise(listed), strict=True)
                ],
                "support first": [
                    encoded_bytes(codec, vector, support, PublicContext(layout=rounds.layout, public_support=support))
                    for vector, support in list(zip(noisy, seeded, strict=True))[1:]
                ],
            }
            for (order, found), chosen in zip(sizes.items(), (listed, seeded), strict=True):
                d = rounds.layout.size
                rows.append(
                    {
                        "order": order,
                        "noise_multiplier": noise,
                        "energy_share": share,
                        "payload_bytes": np.mean(found),
                        "density": np.mean([support.count(d) / d for support in chosen[1:]]),
                        "captured_energy": np.mean(
                            [captured_energy(*pair) for pair in list(zip(clean, chosen, strict=True))[1:]]
                        ),
                    }
                )
    return pd.DataFrame(rows)


def _noise_first(noise_multiplier: float, bits: int) -> Setting:
    """Whose releases are the noisy vectors, whatever density is sent of them."""
    return Setting(
        order="noise first", trust="nobody", feedback=False, density=1.0, bits=bits, noise_multiplier=noise_multiplier
    )


def _sizes(rounds: Rounds, settings: Mapping[float, Sequence[Setting]]) -> set[int]:
    return {dp.TopK(setting.density).count(rounds.layout.size) for group in settings.values() for setting in group}


def _overlap(positions: Sequence[Int64[np.ndarray, "k"]]) -> float:
    return float(np.mean([support_overlap(*pair) for pair in pairwise(positions)]))


def _means(
    sent: Sequence[Sent], clean: Sequence[Float32[np.ndarray, "d"]], tops: Mapping[int, Sequence[Any]]
) -> dict[str, float]:
    """Over all payloads of one link but the first."""
    later, d = sent[1:], len(clean[0])
    means = {
        field.name: float(np.mean([getattr(each.rate, field.name) for each in later]))
        for field in fields(PayloadRate)
        if field.name != "coordinates"
    }
    chosen = [each.support.indices(d) for each in sent]
    own = [tops[len(positions)][each.number] for positions, each in zip(chosen[1:], later, strict=True)]
    return means | {
        "compression_ratio": compression_ratio(d, means["payload_bytes"]),
        "sent_overlap": _overlap(chosen),
        "sent_recall": np.mean([support_overlap(*pair) for pair in zip(own, chosen[1:], strict=True)]),
        "captured_energy": np.mean([captured_energy(clean[each.number], each.support) for each in later]),
    }
