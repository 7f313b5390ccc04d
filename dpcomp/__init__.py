"""dpcomp: compressed federated learning under differential privacy, measured on real bytes.

The public names stand in the order in which data flows. A name is imported when it is first used, so that the command
line answers `--help` without loading the accountant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # isort: off
    from dpcomp.core.errors import BudgetExhausted as BudgetExhausted
    from dpcomp.core.errors import ConfigError as ConfigError
    from dpcomp.core.errors import CorruptPayload as CorruptPayload
    from dpcomp.core.errors import DpcompError as DpcompError
    from dpcomp.core.errors import DpcompWarning as DpcompWarning
    from dpcomp.core.errors import MissingExtra as MissingExtra
    from dpcomp.core.errors import NotPrivate as NotPrivate
    from dpcomp.core.errors import TermsRefused as TermsRefused
    from dpcomp.core.errors import VersionMismatch as VersionMismatch
    from dpcomp.core.randomness import DitherKey as DitherKey
    from dpcomp.core.randomness import DitherKeys as DitherKeys
    from dpcomp.core.randomness import PublicSeed as PublicSeed
    from dpcomp.core.randomness import SecretSeed as SecretSeed
    from dpcomp.core.support import Everywhere as Everywhere
    from dpcomp.core.support import Listed as Listed
    from dpcomp.core.support import Dealt as Dealt
    from dpcomp.core.support import Seeded as Seeded
    from dpcomp.core.address import SERVER as SERVER
    from dpcomp.core.address import Address as Address
    from dpcomp.core.layout import Layout as Layout
    from dpcomp.core.public_context import PublicContext as PublicContext
    from dpcomp.privacy.claim import Bounded as Bounded
    from dpcomp.privacy.claim import Released as Released
    from dpcomp.privacy.claim import Unbounded as Unbounded
    from dpcomp.privacy.units.unit_gradients import Total as Total
    from dpcomp.privacy.clip import Clip as Clip
    from dpcomp.privacy.adaptive_clip import AdaptiveClip as AdaptiveClip
    from dpcomp.privacy.gaussian import Gaussian as Gaussian
    from dpcomp.privacy.sampling import Poisson as Poisson
    from dpcomp.privacy.unsafe import unsafe as unsafe
    from dpcomp.privacy.trust import TrustModel as TrustModel
    from dpcomp.privacy.cost import Cost as Cost
    from dpcomp.privacy.guarantee import Guarantee as Guarantee
    from dpcomp.privacy.plan import Plan as Plan
    from dpcomp.privacy.ledger.budget import Budget as Budget
    from dpcomp.privacy.ledger.ledger import Ledger as Ledger
    from dpcomp.privacy.ledger.permit import Permit as Permit
    from dpcomp.privacy.ledger.ledger_file import LedgerMark as LedgerMark
    from dpcomp.privacy.ledger.ledger_entries import LedgerEntries as LedgerEntries
    from dpcomp.privacy.ledger.ledger_entries import LedgerEntry as LedgerEntry
    from dpcomp.privacy.ledger.ledger_record import LedgerRecord as LedgerRecord
    from dpcomp.privacy.calibrate import calibrate as calibrate
    from dpcomp.sparsify.history_k import HistoryK as HistoryK
    from dpcomp.sparsify.random_k import RandomK as RandomK
    from dpcomp.sparsify.top_k import TopK as TopK
    from dpcomp.codec.prediction import LastBroadcast as LastBroadcast
    from dpcomp.codec.quantize import Dithered as Dithered
    from dpcomp.codec.quantize import ExactGaussian as ExactGaussian
    from dpcomp.codec.quantize import Float16 as Float16
    from dpcomp.codec.quantize import Float32 as Float32
    from dpcomp.codec.quantize import Nearest as Nearest
    from dpcomp.codec.quantize import Rotated as Rotated
    from dpcomp.codec.quantize import Sign as Sign
    from dpcomp.codec.quantize import Stochastic as Stochastic
    from dpcomp.codec.quantize import Ternary as Ternary
    from dpcomp.codec.quantize import Uniform as Uniform
    from dpcomp.codec.allocation import Equal as Equal
    from dpcomp.codec.allocation import FixedStep as FixedStep
    from dpcomp.codec.allocation import Waterfill as Waterfill
    from dpcomp.codec.entropy import FixedWidth as FixedWidth
    from dpcomp.codec.entropy import RangeCoder as RangeCoder
    from dpcomp.codec.codec import Codec as Codec
    from dpcomp.codec.compressor import Compressor as Compressor
    from dpcomp.wire.feedback import EF21 as EF21
    from dpcomp.wire.feedback import MomentumCorrection as MomentumCorrection
    from dpcomp.wire.update import Update as Update
    from dpcomp.wire.memory import ClientMemory as ClientMemory
    from dpcomp.wire.memory import ServerMemory as ServerMemory
    from dpcomp.wire.channel import Channel as Channel
    from dpcomp.pipeline import Pipeline as Pipeline

    __version__: str
    # isort: on

# The module of each name above: tests/core/test_public_names.py holds the two lists together.
_MODULES = {
    **dict.fromkeys(
        ("BudgetExhausted", "ConfigError", "CorruptPayload", "DpcompError", "MissingExtra"), "dpcomp.core.errors"
    ),
    **dict.fromkeys(("DpcompWarning", "NotPrivate", "TermsRefused", "VersionMismatch"), "dpcomp.core.errors"),
    **dict.fromkeys(("DitherKey", "DitherKeys", "PublicSeed", "SecretSeed"), "dpcomp.core.randomness"),
    **dict.fromkeys(("Dealt", "Everywhere", "Listed", "Seeded"), "dpcomp.core.support"),
    **dict.fromkeys(("SERVER", "Address"), "dpcomp.core.address"),
    "Layout": "dpcomp.core.layout",
    "PublicContext": "dpcomp.core.public_context",
    **dict.fromkeys(("Bounded", "Released", "Unbounded"), "dpcomp.privacy.claim"),
    "Total": "dpcomp.privacy.units.unit_gradients",
    "Clip": "dpcomp.privacy.clip",
    "AdaptiveClip": "dpcomp.privacy.adaptive_clip",
    "Gaussian": "dpcomp.privacy.gaussian",
    "Poisson": "dpcomp.privacy.sampling",
    "unsafe": "dpcomp.privacy.unsafe",
    "TrustModel": "dpcomp.privacy.trust",
    "Cost": "dpcomp.privacy.cost",
    "Guarantee": "dpcomp.privacy.guarantee",
    "Plan": "dpcomp.privacy.plan",
    "Budget": "dpcomp.privacy.ledger.budget",
    "Ledger": "dpcomp.privacy.ledger.ledger",
    "Permit": "dpcomp.privacy.ledger.permit",
    "LedgerMark": "dpcomp.privacy.ledger.ledger_file",
    **dict.fromkeys(("LedgerEntries", "LedgerEntry"), "dpcomp.privacy.ledger.ledger_entries"),
    "LedgerRecord": "dpcomp.privacy.ledger.ledger_record",
    "calibrate": "dpcomp.privacy.calibrate",
    "HistoryK": "dpcomp.sparsify.history_k",
    "RandomK": "dpcomp.sparsify.random_k",
    "TopK": "dpcomp.sparsify.top_k",
    "LastBroadcast": "dpcomp.codec.prediction",
    **dict.fromkeys(("Dithered", "ExactGaussian", "Float16", "Float32", "Nearest", "Rotated"), "dpcomp.codec.quantize"),
    **dict.fromkeys(("Sign", "Stochastic", "Ternary", "Uniform"), "dpcomp.codec.quantize"),
    **dict.fromkeys(("Equal", "FixedStep", "Waterfill"), "dpcomp.codec.allocation"),
    **dict.fromkeys(("FixedWidth", "RangeCoder"), "dpcomp.codec.entropy"),
    "Codec": "dpcomp.codec.codec",
    "Compressor": "dpcomp.codec.compressor",
    **dict.fromkeys(("EF21", "MomentumCorrection"), "dpcomp.wire.feedback"),
    "Update": "dpcomp.wire.update",
    **dict.fromkeys(("ClientMemory", "ServerMemory"), "dpcomp.wire.memory"),
    "Channel": "dpcomp.wire.channel",
    "Pipeline": "dpcomp.pipeline",
}
__all__ = [*_MODULES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value = version("dpcomp")
    elif name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module 'dpcomp' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
