"""A case of the study of audits."""

from dataclasses import dataclass
from typing import Literal

from dpcomp.audit import AuditedClaim, Door


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A mechanism to audit, and what it claims.

    Attributes:
        name: What the mechanism does, in the words of the figure.
        kind: "shipped" for pipelines of dpcomp, "naive" for what looks right and is not.
        door: Where the audit enters.
        claim: What a run of the door is claimed to cost.
    """

    name: str
    kind: Literal["shipped", "naive"]
    door: Door
    claim: AuditedClaim
