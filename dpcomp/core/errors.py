"""The errors of dpcomp: every one says what stands where, why it is wrong, and what to do."""

from typing import Literal

Reason = Literal["pipeline", "version", "link", "repeat", "run", "direction", "twice"]


class DpcompError(Exception):
    """The base of everything that dpcomp refuses."""


class NotPrivate(DpcompError):
    """The pipeline, or a value handed to it, carries no privacy guarantee."""


class CorruptPayload(DpcompError):
    """The bytes are not what a sender sealed."""


class VersionMismatch(DpcompError):
    """The bytes are sound, but were coded against another state, sender, run or pipeline.

    `reason` says against which: another `pipeline` or layout, `version` or digest of shared memory, `link` or `run` of
    the sender; or that it is a `repeat`, runs in the wrong `direction`, or is the sender's second of a round (`twice`).
    """

    def __init__(self, message: str, reason: Reason):
        super().__init__(message)
        self.reason: Reason = reason


class ConfigError(DpcompError):
    """A table or file does not describe what it should; the message says where, and what was meant."""


class MissingExtra(DpcompError, ImportError):
    """A part of dpcomp needs packages that are not installed; the message gives the `pip install` line."""


class BudgetExhausted(DpcompError):
    """The ledger gives no right to draw this noise: it was spent, or was never charged."""
