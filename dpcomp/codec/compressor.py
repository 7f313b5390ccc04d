"""Compressor: a codec with error feedback, for a training loop of one's own."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_torch_array
from jaxtyping import Float32

from dpcomp.codec.arrays import Flat, Form, flattened
from dpcomp.codec.codec import Codec
from dpcomp.codec.standalone import Message, encode
from dpcomp.core.checks import check_type, whole_number
from dpcomp.core.finite import all_finite
from dpcomp.core.support import Everywhere

SENDER_BITS = 16  # of the numbers that random parts draw from, below those of the counter
MOST_PAYLOADS = 2 ** (64 - SENDER_BITS)


class Compressor:
    """Compress tensors by name, and add to each what its earlier payloads dropped.

    The interface is that of GRACE (Xu et al. 2021, section IV): `compress(name, tensor)` at the sender, `decompress`
    at whoever receives, of which the mean or sum is taken. The residual of a name is what `feedback=True` of a pipeline
    keeps of an update (Seide et al. 2014, section 2), so that all that was decoded and the residual add up to all that
    was given.

    Every payload draws its random numbers anew: from the counter of the payloads and the number of the sender.

    **Privacy:** no noise is added and nothing is charged. A residual is as private as the tensors.

    Args:
        codec: The codec; one that `codec.compress` takes.
        feedback: Whether residuals are kept. `TopK`, `Sign` and rounding to the nearest need it.
        sender: The number of this sender, such as a rank, from 0 to 65,535. Senders of one mean with different numbers
            draw different random numbers, so that their errors average out.

    Raises:
        TypeError: `codec` is no `dp.Codec`, `feedback` no bool, or `sender` no whole number.
        ValueError: The codec needs a link, as `codec.compress` says; or `sender` lies outside its range.

    Examples:
        >>> import dpcomp as dp
        >>> compressor = dp.Compressor(dp.Codec(sparsify=dp.TopK(0.5)))
        >>> gradient = np.array([1.0, 3.0], np.float32)
        >>> [compressor.decompress(compressor.compress("bias", gradient), gradient).tolist() for _ in range(4)]
        [[0.0, 3.0], [0.0, 3.0], [3.0, 0.0], [0.0, 6.0]]
    """

    def __init__(self, codec: Codec, *, feedback: bool = True, sender: int = 0):
        check_type(codec, Codec, f"Compressor(codec) is {codec!r}: give a dp.Codec")
        check_type(feedback, bool, f"Compressor(feedback) is {feedback!r}: give True or False")
        self.codec, self.feedback = codec, feedback
        self.sender = whole_number(sender, "Compressor(sender)", least=0, most=2**SENDER_BITS - 1)
        self._digest = codec.standalone_digest
        self._counter = 0
        self._residuals: dict[str, _Residual] = {}

    def compress(self, name: str, value: Any) -> bytes:
        """Compress a tensor and what was dropped of those before it with the same name.

        Args:
            name: Whose residual is used, such as the name of a parameter.
            value: An array, or a mapping of names to arrays, as for `codec.compress`; of the same names and shapes in
                each call with one name. Whole numbers and bools are kept as they are.

        Returns:
            The payload, for `decompress` of any compressor with this codec, or `codec.decompress`.

        Raises:
            TypeError: As `codec.compress` does; or the name is no string.
            ValueError: As `codec.compress` does; or the shapes are others than before. Nothing has changed then.
        """
        check_type(name, str, f"Compressor.compress(name) is {name!r}: give a string")
        flat = flattened(value, f"Compressor.compress({name!r})")
        kept = self._residuals.get(name)
        if kept is not None and (kept.form is None or kept.form.coded != flat.form.coded):
            kept = kept.suited_to(flat.form, name)
        message, left = with_residual(
            self.codec,
            flat,
            None if kept is None else kept.vector,
            self._number(),
            self._digest,
            feedback=self.feedback,
        )
        self._counter += 1
        if left is not None:
            self._residuals[name] = _Residual(left, flat.form, _framework(value))
        return message.payload

    def decompress(self, payload: bytes | bytearray | memoryview, like: Any) -> Any:
        """Decompress a payload of any compressor with this codec; nothing is kept of it.

        Args:
            payload: The payload.
            like: As for `codec.decompress`.

        Returns:
            As `codec.decompress` does.

        Raises:
            TypeError, CorruptPayload, VersionMismatch: As `codec.decompress` does.
        """
        return self.codec.decompress(payload, like)

    def state_dict(self) -> dict[str, Any]:
        """Return the counter and the residuals, to be saved beside the model.

        Returns:
            `{"counter": number, "residuals": {name: vector}}`. The vectors are copies, of float32, and PyTorch's where
            the tensors were, so that `torch.load` reads them.
        """
        return {
            "counter": self._counter,
            "residuals": {name: kept.framed() for name, kept in self._residuals.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the counter and the residuals of `state_dict`.

        Args:
            state: What `state_dict` returned.

        Raises:
            TypeError: The state is no mapping, or holds something else.
            ValueError: It lacks a part, has residuals though there is no feedback, or holds values that are not finite.
                Nothing has changed then.
        """
        check_type(state, Mapping, f"Compressor.load_state_dict: a state is a mapping, not {type(state).__name__}")
        if set(state) != {"counter", "residuals"}:
            raise ValueError(
                f"Compressor.load_state_dict: the state has {sorted(map(str, state))}, and one of a compressor has "
                "'counter' and 'residuals': give what state_dict() returned"
            )
        where = "Compressor.load_state_dict"
        counter = whole_number(state["counter"], f"{where}: the counter", least=0, most=MOST_PAYLOADS - 1)
        check_type(state["residuals"], Mapping, f"{where}: the residuals are no mapping of names to vectors")
        if state["residuals"] and not self.feedback:
            raise ValueError(f"{where}: the state has residuals, and this compressor has feedback=False")
        residuals: dict[str, _Residual] = {}
        for name, vector in state["residuals"].items():
            flat = flattened(vector, f"{where}, residual {name!r}")
            residuals[str(name)] = _Residual(flat.vector.copy(), None, _framework(vector))
        self._counter, self._residuals = counter, residuals

    def _number(self) -> int:
        return self._counter << SENDER_BITS | self.sender

    def __repr__(self) -> str:
        return f"Compressor({self.codec!r}, feedback={self.feedback}, sender={self.sender})"


def with_residual(
    codec: Codec,
    flat: Flat,
    residual: Float32[np.ndarray, "d"] | None,
    number: int,
    digest: bytes,
    *,
    feedback: bool,
) -> tuple[Message, Float32[np.ndarray, "d"] | None]:
    """Encode arrays plus a residual, and return what the codec drops.

    Args:
        codec: The codec.
        flat: The contents of the arrays.
        residual: What earlier payloads dropped, which stays unchanged; None for nothing.
        number: The number that random parts draw from.
        digest: What `codec_digest` returned.
        feedback: Whether the new residual is computed.

    Returns:
        The message, and the (d,) new residual; None without feedback.

    Raises:
        ValueError: The sum is not finite.
    """
    target = flat.vector
    if residual is not None:
        with np.errstate(over="ignore"):
            target = residual + flat.vector
        if not all_finite(target):
            raise ValueError(
                "the tensor and its residual add up to values beyond the range of float32: scale the values"
            )
    message = encode(codec, Flat(form=flat.form, vector=target, exact=flat.exact), number, digest)
    if not feedback:
        return message, None
    if isinstance(message.support, Everywhere):
        return message, target - message.decoded
    left = target.copy() if residual is None else target
    left[message.support.indices(len(left))] -= message.decoded
    return message, left


class _Residual:
    """What earlier payloads of a name dropped.

    Attributes:
        vector: The (d,) values.
        form: The names and shapes of its tensors; None after it was loaded.
        framework: The array library of its tensors; None for NumPy's.
    """

    def __init__(self, vector: Float32[np.ndarray, "d"], form: Form | None, framework: Any):
        self.vector, self.form, self.framework = vector, form, framework

    def suited_to(self, form: Form, name: str) -> "_Residual":
        """Return the residual if it is of arrays with these names and shapes; refuse others."""
        size = 0 if form.layout is None else form.layout.size
        if self.form is None and len(self.vector) == size:
            return self
        before = f"{len(self.vector)} values" if self.form is None else str(dict(self.form.coded))
        raise ValueError(
            f"Compressor.compress({name!r}): the tensor has {dict(form.coded)}, and its residual is of {before}: "
            "compress each tensor under a name of its own"
        )

    def framed(self) -> Any:
        """Return a copy in the framework of the tensors."""
        return self.vector.copy() if self.framework is None else self.framework.asarray(self.vector.copy())


def _framework(value: Any) -> Any:
    """Return PyTorch's functions where a value is of its tensors; else None."""
    tensors = value.values() if isinstance(value, Mapping) else [value]
    return next((array_namespace(tensor) for tensor in tensors if is_torch_array(tensor)), None)
