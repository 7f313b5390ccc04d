"""The steps of a codec, and what is known of the values or bytes after each."""

from typing import Any

from dpcomp.codec.codec import Codec
from dpcomp.display.html import State, Step


def codec_steps(codec: Codec, *, place: str, state: State | None) -> list[Step]:
    """Return the steps of a codec, the entropy coder last.

    Args:
        codec: The codec.
        place: Who encodes, such as "client".
        state: Whether the values are clean or released; None where that is not known.
    """
    known: list[tuple[Any, tuple[str, ...]]] = []
    if codec.predict is not None:
        known.append((codec.predict, ("the difference to the last broadcast",)))
    if codec.sparsify is not None:
        share: Any = getattr(codec.sparsify, "fraction", None)
        size = f"{100 * share:.3g} % of the coordinates" if isinstance(share, float) else "fewer coordinates"
        known.append((codec.sparsify, (size, "known to both ends" if codec.selects_publicly else "positions are sent")))
    bits: Any = getattr(codec.quantizer, "bits", None)
    known.append((codec.quantizer, (f"{bits} bits a value",) if isinstance(bits, int) else ()))
    if codec.is_lossless:
        known[-1] = codec.quantizer, ("32 bits a value",)
    if not codec.codes_itself and not codec.is_lossless:
        length = "of fixed length" if codec.entropy.packed else "of a length that depends on the values"
        known.append((codec.entropy, (f"bytes, {length}",)))
    return [Step(title=repr(part), place=place, known=clauses, state=state) for part, clauses in known]
