"""The beginning of a body: which support its values have, as far as the reader does not know it."""

from itertools import pairwise

from dpcomp.codec.entropy.integers import IntegerReader, IntegerWriter
from dpcomp.core.errors import CorruptPayload
from dpcomp.core.public_context import PublicContext
from dpcomp.core.support import MOST_PLACES, Dealt, Everywhere, Listed, Support

# The first byte of a body says which support it has: all coordinates; those that both ends compute; those listed in the
# body, after their number; those of several places, which it names. The number of any but the listed is known.
EVERYWHERE, PUBLIC, LISTED, UNION = range(4)


def is_union(support: Support, public: Support | None) -> bool:
    """Return whether a body names the places of a support: in a broadcast alone, whose public one has none yet."""
    return isinstance(support, Dealt) and is_open_union(public) and support.alike(public)


def is_open_union(public: Support | None) -> bool:
    """Return whether a broadcast's public support is one whose places the body is to name."""
    return isinstance(public, Dealt) and not public.places


def support_code(support: Support, public: Support | None) -> int:
    """Return the code that a body has for a support."""
    if isinstance(support, Everywhere):
        return EVERYWHERE
    if public is not None and support == public:
        return PUBLIC
    if isinstance(support, Listed):
        return LISTED
    if is_union(support, public):
        return UNION
    raise ValueError(
        f"the support {support} is neither listed nor the public one, {public}: list its positions, dp.Listed(…)"
    )


def write_support(code: int, support: Support, k: int) -> bytes:
    """Write which support a body has: its code, and what the reader does not know of it."""
    writer = IntegerWriter()
    writer.number(code)
    if code == LISTED:
        writer.number(k)
    if isinstance(support, Dealt) and code == UNION:
        writer.number(len(support.places))
        for before, place in pairwise((-1, *support.places)):
            writer.number(place - before)
    return writer.finish()


def read_support(body: memoryview, context: PublicContext) -> tuple[Support | None, int, int]:
    """Read which support a body has.

    Returns:
        The support, or None if its positions are listed; how many coordinates it holds; and the bytes that were read.

    Raises:
        CorruptPayload: The body has no such beginning, or says what this pipeline does not.
    """
    reader, d, public = IntegerReader(body), context.layout.size, context.public_support
    code = reader.number()
    support: Support | None = {EVERYWHERE: Everywhere(), PUBLIC: public}.get(code)
    if code == LISTED:
        if (k := reader.number()) > d:
            raise CorruptPayload(f"the body lists {k} of {d} coordinates")
        return None, k, len(body) - reader.left
    if code == UNION and isinstance(public, Dealt) and not public.places:
        support = _read_union(reader, public, d)
    if support is None:
        raise CorruptPayload(f"the body has support code {code}, but the pipeline has {public}")
    return support, support.count(d), len(body) - reader.left


def _read_union(reader: IntegerReader, base: Dealt, d: int) -> Dealt:
    """Read the places of a union, for no more coordinates than there are: a sender of more sends all."""
    count, place, places = reader.number(), -1, list[int]()
    if count * base.k > d:
        raise CorruptPayload(f"the body names {count} places of {base.k} coordinates, of {d}")
    for _ in range(count):
        step = reader.number()
        place += step
        if step == 0 or place >= MOST_PLACES:
            raise CorruptPayload("the body names places that are not ascending, or too large")
        places.append(place)
    return Dealt(seed=base.seed, k=base.k, places=tuple(places))
