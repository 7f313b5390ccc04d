"""numcodecs: a codec as one of numcodecs', for chunks of Zarr arrays."""

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from dpcomp.codec.codec import Codec
from dpcomp.core.calls import as_toml_table, from_table
from dpcomp.core.errors import CorruptPayload
from dpcomp.core.extras import require
from dpcomp.pipeline import PARTS

require("numcodecs", "numcodecs")

# ruff: noqa: E402  # what follows imports it
from numcodecs.abc import Codec as AnyCodec
from numcodecs.compat import ensure_contiguous_ndarray
from numcodecs.registry import register_codec

LENGTH = struct.Struct("<I")
LONGEST_HEADER = 4096  # bytes: more than the 64 dimensions of an array take
KINDS = "fiub"  # floats, whole numbers and bools


class ChunkCodec(AnyCodec):
    """Compresses chunks as `dp.Codec.compress` does: the `compressor` of a Zarr array, or any user's of numcodecs.

    Floats are coded with the loss of the codec; whole numbers and bools are kept. An encoded chunk is, in this order: 4
    bytes with the length of a header, little-endian; the header, the type and shape as JSON; the payload.

    **Privacy:** none: it adds no noise, and the bytes tell what the values tell.

    Args:
        codec: The codec, or what `get_config` has made of it.

    Raises:
        ConfigError: The configuration names an unknown part.
        MissingExtra: numcodecs is not installed.
        TypeError: `codec` is neither.

    Examples:
        >>> import dpcomp as dp
        >>> from dpcomp.adapters.numcodecs import ChunkCodec
        >>> chunk = np.random.default_rng(0).standard_normal((100, 100))
        >>> codec = ChunkCodec(dp.Codec(quantize=dp.Uniform(8)))
        >>> encoded = codec.encode(chunk)
        >>> len(encoded) < chunk.nbytes / 8, float(np.abs(codec.decode(encoded) - chunk).max()) < 0.02
        (True, True)
    """

    codec_id = "dpcomp"

    def __init__(self, codec: Codec | Mapping[str, Any]):
        made = from_table(dict(codec), "codec", PARTS) if isinstance(codec, Mapping) else codec
        if not isinstance(made, Codec):
            raise TypeError(f"ChunkCodec(codec={made!r}): give a dp.Codec, or what get_config() has made of one")
        self.codec = made

    def get_config(self) -> dict[str, Any]:
        """Return what `numcodecs.get_codec` makes this codec from: plain types."""
        return {"id": self.codec_id, "codec": as_toml_table(self.codec, "codec")}

    def encode(self, buf: Any) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]  # theirs returns nothing
        """Compress a chunk.

        Args:
            buf: An array of floats, whole numbers or bools, of any shape; other buffers are bytes.

        Raises:
            TypeError: The type is another one, such as complex.
            ValueError: A float is not finite, or beyond the range of float32.
        """
        chunk = np.asarray(buf if hasattr(buf, "dtype") else ensure_contiguous_ndarray(buf))
        chunk = chunk.astype(chunk.dtype.newbyteorder("="), copy=False)
        header = json.dumps([chunk.dtype.str, list(chunk.shape)]).encode()
        return LENGTH.pack(len(header)) + header + self.codec.compress(chunk)

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decompress a chunk.

        Args:
            buf: What `encode` returned.
            out: An array of as many bytes that the chunk is written to; None returns a new one.

        Raises:
            CorruptPayload: The bytes are damaged, or are none of `encode`.
            VersionMismatch: They are undamaged, but of another codec.
            ValueError: `out` holds another number of bytes.
        """
        encoded = np.asarray(ensure_contiguous_ndarray(buf)).tobytes()
        like, begin = _header(encoded)
        chunk = self.codec.decompress(encoded[begin:], like)
        if out is None:
            return chunk
        target = np.asarray(ensure_contiguous_ndarray(out)).reshape(-1).view(np.uint8)
        if target.nbytes != chunk.nbytes:
            raise ValueError(f"decode(out) holds {target.nbytes} bytes, and the chunk {chunk.nbytes}")
        target[:] = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8)
        return out


def _header(encoded: bytes) -> tuple[np.ndarray, int]:
    """Return an array of the type and shape that a chunk says, which takes no memory, and where its payload begins."""
    try:
        (length,) = LENGTH.unpack_from(encoded)
        if length > LONGEST_HEADER:
            raise ValueError("the header is too long")
        name, shape = json.loads(encoded[LENGTH.size : LENGTH.size + length])
        dtype = np.dtype(str(name))
        if dtype.kind not in KINDS:
            raise ValueError(f"no chunk of {dtype} is encoded")
        return np.broadcast_to(np.zeros((), dtype), shape), LENGTH.size + length
    except (ValueError, TypeError, struct.error) as error:
        raise CorruptPayload(f"these bytes are no chunk that ChunkCodec has encoded ({error})") from error


register_codec(ChunkCodec)
