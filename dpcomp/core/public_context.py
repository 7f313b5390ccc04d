"""What both ends of a way know before a body is written or read."""

from dataclasses import dataclass

from dpcomp.core.layout import Layout
from dpcomp.core.support import Listed, Seeded


@dataclass(frozen=True, kw_only=True, eq=False)
class Common:
    """What sender and receiver of one body know alike, before it is written or read.

    `mask` is the public support of the round, if it has one; `previous` the last listed support on the same
    way; `dither_key` 256 public bits that no other body of the run shares; `packed` says that levels are packed in
    whole bits, not entropy-coded.
    """

    layout: Layout
    mask: Seeded | None = None
    previous: Listed | None = None
    dither_key: int = 0
    packed: bool = False
