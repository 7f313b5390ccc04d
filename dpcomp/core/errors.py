"""The errors of dpcomp: each message says what stands where, why it is wrong, and what to do."""

from typing import Literal

Reason = Literal[
    "pipeline", "run", "model", "version", "round", "link", "repeat", "twice", "direction", "uninvited", "size"
]


class DpcompError(Exception):
    """The base class of the errors below; arguments out of range raise Python's TypeError and ValueError."""


class NotPrivate(DpcompError):
    """A pipeline, or a value given to it, has no privacy guarantee.

    Raised when a pipeline is made whose stages prove no bound on what one unit adds, and when a value that is not
    released is about to be encoded. The message names the stage and the change that would make the pipeline private.
    """


class CorruptPayload(DpcompError):
    """The received bytes are not what a sender wrote: they are cut, changed or of another format.

    The receiver's state is unchanged, and nothing larger than one update was allocated. Ask the sender for the same
    bytes again.
    """


class VersionMismatch(DpcompError):
    """The received bytes are intact, but were coded against another state, sender, run or pipeline.

    The receiver's state is unchanged.

    Attributes:
        reason: What differs: the `pipeline` or its layout, the `version` or digest of the shared memory, the `link` or
            the `run` of the sender, its first `model`, or the `round` of the update; or that the payload is a `repeat`
            of an accepted one, was sent in the wrong `direction`, is the second of its sender in a round (`twice`), its
            sender was not asked for it (`uninvited`), or its values are beyond the `size` that an update may have.
    """

    def __init__(self, message: str, reason: Reason):
        super().__init__(message)
        self.reason: Reason = reason


class ConfigError(DpcompError):
    """A table or a file describes no valid configuration; the message gives the place and the nearest valid name."""


class MissingExtra(DpcompError, ImportError):
    """A part of dpcomp needs packages that are not installed; the message gives the `pip install` line."""


class DpcompWarning(UserWarning):
    """A result that may mislead: a δ that is too large, gradients that are not finite, a run that learned nothing."""


class BudgetExhausted(DpcompError):
    """The ledger grants no permit for this noise: the budget is spent, the permit is used up, or nothing was charged.

    No noise was drawn. Stop, charge fewer steps, or use more noise; a ledger's budget cannot be raised afterwards.
    """


class TermsRefused(DpcompError):
    """A client's policy does not allow the terms of a federation: nothing was trained, charged or sent."""


def named_error(error: Exception) -> str:
    """Return the class and the first line of an error of another library, some of which fill a page.

    Examples:
        >>> from dpcomp.core.errors import named_error
        >>> named_error(RuntimeError("shapes differ.\\nAt line 3"))
        'RuntimeError: shapes differ'
    """
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}".rstrip(": .")
