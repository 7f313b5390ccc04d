"""The errors of dpcomp: every one says what stands where, why it is wrong, and what to do."""


class DpcompError(Exception):
    """The base of everything that dpcomp refuses."""


class NotPrivate(DpcompError):
    """The pipeline, or a value handed to it, carries no privacy guarantee."""


class CorruptPayload(DpcompError):
    """The bytes are not what a sender sealed."""


class VersionMismatch(DpcompError):
    """The bytes are sound, but were coded against another state, sender, run or pipeline."""


class BudgetExhausted(DpcompError):
    """The ledger gives no right to draw this noise: it was spent, or was never charged."""
