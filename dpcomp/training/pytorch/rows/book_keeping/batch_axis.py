"""Batch axis: follows the examples of a batch through the operations of a forward pass."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._C import DisableTorchFunction
from torch.utils._python_dispatch import TorchDispatchMode

from dpcomp.training.pytorch.rows.own_random import RandomSource


class ExamplesMeet(Exception):
    """An operation is not known to keep examples apart; the text says which."""


@dataclass(frozen=True)
class BatchAxis:
    """Where the examples lie in a tensor: `axis` has n · `inner` places, of which example i has `inner` in a row."""

    axis: int
    inner: int = 1


UNIFORM = BatchAxis(-1, 0)  # alike at all places, such as zeros or fresh random numbers of the length of a batch

# Operations of torch by their rules.
# fmt: off
_ELEMENTWISE = frozenset({
    "abs", "acos", "add", "addcdiv", "addcmul", "alias", "angle", "asin", "atan", "atan2", "bernoulli",
    "bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor", "ceil", "celu", "clamp", "clamp_max", "clamp_min",
    "clone", "copy", "cos", "cosh", "deg2rad", "detach", "div", "dropout", "elu", "eq", "erf", "erfc", "exp",
    "exp2", "expm1", "exponential", "fill", "floor", "floor_divide", "fmod", "frac", "ge", "gelu", "gt",
    "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "heaviside", "hypot", "isfinite", "isinf", "isnan",
    "ldexp", "le", "leaky_relu", "lerp", "lift_fresh", "log", "log10", "log1p", "log2", "log_sigmoid_forward",
    "logaddexp", "logaddexp2", "logical_and", "logical_not", "logical_or", "logical_xor", "logit", "lt",
    "masked_fill", "maximum", "minimum", "mish", "mul", "nan_to_num", "native_dropout", "ne", "neg", "normal",
    "positive", "pow", "rad2deg", "random", "reciprocal", "relu", "relu6", "remainder", "round", "rsqrt", "rsub",
    "selu", "sgn", "sigmoid", "sign", "silu", "sin", "sinc", "sinh", "softplus", "softshrink", "sqrt", "square",
    "sub", "tan", "tanh", "threshold", "_to_copy", "trunc", "uniform", "where", "xlogy", "zero",
})
_REDUCTIONS = frozenset({
    "all", "amax", "amin", "aminmax", "any", "argmax", "argmin", "count_nonzero", "linalg_vector_norm", "logsumexp",
    "max", "mean", "median", "min", "nanmedian", "nansum", "norm", "prod", "std", "std_mean", "sum", "var",
    "var_mean",
})
_VIEWS = frozenset({
    "view", "_unsafe_view", "reshape", "_reshape_alias", "expand", "unsqueeze", "squeeze", "permute", "transpose", "t",
    "select", "slice", "cat", "stack",
})
_ALONG = frozenset({
    "cummax", "cummin", "cumprod", "cumsum", "flip", "glu", "_log_softmax", "logcumsumexp", "roll", "_softmax",
    "sort", "topk",
})
_FACTORIES = frozenset({
    "empty", "full", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "ones", "ones_like", "rand",
    "randn", "scalar_tensor", "zeros", "zeros_like",
})
_RANDOM_LIKE = frozenset({
    "empty_like", "rand_like", "randn_like",
})
_BATCHED = frozenset({
    "adaptive_avg_pool1d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "channel_shuffle",
    "col2im", "im2col", "max_pool1d_with_indices", "max_pool2d", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "mkldnn_max_pool2d", "native_group_norm", "pixel_shuffle", "pixel_unshuffle",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", "upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_nearest3d", "upsample_trilinear3d",
})
_ATTENTION = frozenset({
    "_scaled_dot_product_attention_math", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_fused_attention_overrideable",
})
# fmt: on


class FollowedExamples(TorchDispatchMode):
    """Follows the batch axis through all operations while it is entered, and raises where examples could meet.

    The rules are conservative: an operation without a rule raises. Tensors that do not depend on the batch, such as
    parameters, have no axis.

    Args:
        batch: The tensors of a batch, whose first axis runs over the n examples.
        n: The number of examples; two or more.
        look: Called with each operation's name and tensors before it is followed.

    Raises:
        ExamplesMeet: Naming the operation.
    """

    def __init__(self, batch: Sequence[Tensor], n: int, look: Callable[[str, list[Tensor], list[Tensor]], None]):
        super().__init__()
        self._n, self._look, self._random = n, look, RandomSource()
        # By identity; the tensors are kept, so that no other gets their number.
        self._known: dict[int, tuple[Tensor, BatchAxis | None]] = {}
        self._memory: set[int] = set()  # of tensors that depend on the batch
        for part in batch:
            self._set(part, BatchAxis(0))

    def axis_of(self, tensor: Tensor) -> BatchAxis | None:
        """Return where the examples lie in a tensor; None if it does not depend on the batch."""
        return self._known.get(id(tensor), (tensor, None))[1]

    def knows(self, tensor: Tensor) -> bool:
        """Return whether a tensor is of the batch, or came out of an operation that was followed."""
        return id(tensor) in self._known

    def _set(self, tensor: Tensor, axis: BatchAxis | None) -> None:
        self._known[id(tensor)] = (tensor, axis)
        if axis is not None and (memory := memory_of(tensor)):
            self._memory.add(memory)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run an operation, and note where the examples lie in its results."""
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        named = _named(func, args, kwargs)
        written = [
            part
            for argument in func._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
            for part in tensors_in([named.get(argument.name)])
        ]
        given = [*tensors_in(args), *tensors_in(kwargs.values())]
        self._look(name, given, written)
        if any(not self.knows(part) and memory_of(part) in self._memory for part in given):
            raise ExamplesMeet(f"{name} with values of the batch that were taken past torch's operations")
        plain = name.removesuffix("_") if written and not name.startswith("_") else name
        if plain == "as_strided" and self.axis_of(args[0]) is not None and not _same_places(*args):
            raise ExamplesMeet(name)
        other = self._random.other(func, args, kwargs)
        out = func(*args, **kwargs)
        if other:  # known numbers are a table, which must not be of the length of the batch
            if any(length and not length % self._n for part in tensors_in([out]) for length in part.shape):
                raise ExamplesMeet(f"{name} {other}")
            axis: BatchAxis | None = None
        elif plain in _FACTORIES:
            fills = [self.axis_of(part) for part in tensors_in((*args[1:], *kwargs.values()))]
            if any(axis is not None for axis in fills):
                raise ExamplesMeet(f"{name} with a value of the batch")
            axis = UNIFORM
        elif all(self.axis_of(part) is None for part in given):
            axis = None
            if any(part.ndim and len(part) == self._n for part in tensors_in([out])) and plain in (
                "arange",
                "randperm",
                "eye",
            ):
                raise ExamplesMeet(f"{name} of the length of the batch")
        else:
            axis = self._rule(plain, func, args, kwargs, out)
        for part in written:
            self._refuse_hidden_write(name, part, axis)
        for part in (*tensors_in([out]), *written):
            if axis is not None and axis is not UNIFORM and part.numel():
                length = part.shape[axis.axis] if 0 <= axis.axis < part.ndim else -1
                if length != self._n * axis.inner:
                    raise ExamplesMeet(name)
            self._set(part, axis)
        return out

    def _refuse_hidden_write(self, name: str, part: Tensor, axis: BatchAxis | None) -> None:
        """Refuse to write values of the batch where a tensor that is not known to have them would show them."""
        if axis is None or self.axis_of(part) not in (None, UNIFORM):
            return
        memory = memory_of(part)
        others = [other for other, _ in self._known.values() if other is not part]
        if axis is UNIFORM:  # `mask[64:] = 0` makes it another one at some places of the batch
            if any(other.numel() > part.numel() and memory_of(other) == memory for other in others):
                raise ExamplesMeet(f"{name}, which writes a part of values of the length of the batch,")
            return
        if self.axis_of(part) is None or any(memory_of(other) == memory for other in others):
            raise ExamplesMeet(f"{name}, which writes values of the batch into a part of a tensor,")

    def _rule(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> BatchAxis | None:
        result = next(iter(tensors_in([out])), None)
        if result is None:  # a number that was read from a tensor
            raise ExamplesMeet(f"{name}, which reads a value of the batch")
        tensors = [*tensors_in(args), *tensors_in(kwargs.values())]
        if all(self.axis_of(part) in (None, UNIFORM) for part in tensors):
            # A running sum or a sort makes values that are alike into others: an example's place, or an order.
            if name not in _ELEMENTWISE | _RANDOM_LIKE | _VIEWS:
                raise ExamplesMeet(f"{name} of values of the length of the batch")
            if not all(self.axis_of(part) is UNIFORM for part in tensors):
                self._refuse_table_with_uniform(name, tensors)
            return self._joined_uniform(name, args, kwargs)
        if name in _ELEMENTWISE or name in _RANDOM_LIKE:
            return self._elementwise(name, tensors, result)
        first: Tensor = args[0] if isinstance(args[0], Tensor) else next(iter(tensors_in(args)))
        axis = self.axis_of(first)
        if name in ("mm", "addmm", "bmm", "baddbmm", "convolution", "_convolution", "mkldnn_convolution", "linear"):
            return self._product(name, args, result)
        if name in ("embedding",):
            table, places = args[0], args[1]
            return self._only(name, self.axis_of(places), others=[table])
        if name in _ATTENTION:
            return self._attention(name, args, kwargs)
        if axis is None or axis is UNIFORM:
            raise ExamplesMeet(name)
        if name in ("cat", "stack"):
            return self._joined(name, args, kwargs, result)
        if any(self.axis_of(part) not in (None, axis, UNIFORM) for part in tensors):
            raise ExamplesMeet(name)
        if name in ("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy"):
            return _reshaped(name, axis, tuple(first.shape), tuple(result.shape), self._n)
        if name == "as_strided":
            return axis  # the same places, as was seen before it ran
        if name in ("permute",):
            return BatchAxis([d % first.ndim for d in args[1]].index(axis.axis), axis.inner)
        if name in ("transpose",):
            a, b = args[1] % first.ndim, args[2] % first.ndim
            return BatchAxis({a: b, b: a}.get(axis.axis, axis.axis), axis.inner)
        if name == "t":
            return BatchAxis(first.ndim - 1 - axis.axis, axis.inner)
        if name == "expand":
            return BatchAxis(axis.axis + result.ndim - first.ndim, axis.inner)
        if name == "unsqueeze":
            return BatchAxis(axis.axis + (args[1] % (first.ndim + 1) <= axis.axis), axis.inner)
        if name == "squeeze":
            dims = _dims(args[1:2], first.ndim) if len(args) > 1 else [d for d, k in enumerate(first.shape) if k == 1]
            return BatchAxis(axis.axis - sum(d < axis.axis and first.shape[d] == 1 for d in dims), axis.inner)
        if name in _REDUCTIONS:
            return self._reduced(name, func, args, kwargs, axis, first)
        if name in _ALONG:
            return self._along(name, func, args, kwargs, axis, first)
        if name in ("select", "unbind"):
            dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % first.ndim
            return BatchAxis(axis.axis - (dim < axis.axis), axis.inner) if dim != axis.axis else self._refused(name)
        if name in ("slice", "narrow", "split", "split_with_sizes", "chunk", "index_select", "gather", "unfold"):
            return self._cut(name, func, args, kwargs, axis, first, result)
        if name == "constant_pad_nd":
            padded = {first.ndim - 1 - k // 2 for k, width in enumerate(args[1]) if width}
            return axis if axis.axis not in padded else self._refused(name)
        if name == "native_layer_norm":
            return self._only(name, axis if axis.axis < first.ndim - len(args[1]) else None, others=args[2:4])
        if name in ("_fused_rms_norm", "rms_norm"):
            return self._only(name, axis if axis.axis < first.ndim - len(args[1]) else None, others=args[2:3])
        if name in _BATCHED and axis.axis == 0 and first.ndim >= 3:
            return axis
        if name in ("native_batch_norm", "_native_batch_norm_legit_no_training") and axis.axis == 0:
            training = name == "native_batch_norm" and args[5]
            return axis if not training else self._refused(name)
        return self._refused(name)

    def _joined_uniform(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BatchAxis:
        """Return the axis of values that were alike at all places, which they are no longer if parts are joined.

        The parts may differ, so a view that takes the axis along which they lie for that of the batch would tie an
        example to its place: from here on the batch has an axis of its own.
        """
        parts: list[Tensor] = list(args[0]) if name in ("cat", "stack") else []
        if len(parts) < 2:
            return UNIFORM
        first, dim = parts[0], args[1] if len(args) > 1 else kwargs.get("dim", 0)
        dim %= first.ndim + (name == "stack")
        of_batch = [
            d
            for d, length in enumerate(first.shape)
            if length and not length % self._n and not (name == "cat" and d == dim)
        ]
        if len(of_batch) != 1:
            raise ExamplesMeet(f"{name} of values of the length of the batch")
        (axis,) = of_batch
        return BatchAxis(axis + (name == "stack" and dim <= axis), first.shape[axis] // self._n)

    def _refused(self, name: str) -> BatchAxis:
        raise ExamplesMeet(name)

    def _refuse_table_with_uniform(self, name: str, tensors: list[Tensor]) -> None:
        """Refuse a combination of uniform values with several that do not depend on the batch."""
        if any(self.axis_of(part) is None and part.numel() > 1 for part in tensors):
            raise ExamplesMeet(f"{name} of a table with values of the length of the batch")

    def _refuse_table(self, name: str, part: Any, from_end: int) -> None:
        """Refuse a table with an entry a place of the batch: it would tie an example to its place.

        Args:
            name: Of the operation.
            part: What is combined with values of the batch; only a tensor that does not depend on it is looked at.
            from_end: The axis of the batch in the result, counted from the last one, which is -1.
        """
        if not isinstance(part, Tensor) or self.axis_of(part) is not None:
            return
        if part.ndim >= -from_end and part.shape[from_end] != 1:
            raise ExamplesMeet(f"{name} with a table of the length of the batch")

    def _only(self, name: str, axis: BatchAxis | None, others: Sequence[Any]) -> BatchAxis:
        if axis is None or axis is UNIFORM or any(self.axis_of(part) is not None for part in tensors_in(others)):
            raise ExamplesMeet(name)
        return axis

    def _elementwise(self, name: str, tensors: list[Tensor], result: Tensor) -> BatchAxis:
        axes = {
            (axis.axis - part.ndim, axis.inner)
            for part in tensors
            if (axis := self.axis_of(part)) is not None and axis is not UNIFORM
        }
        if len(axes) != 1:
            raise ExamplesMeet(name)
        ((from_end, inner),) = axes
        for part in tensors:
            self._refuse_table(name, part, from_end)
        return BatchAxis(result.ndim + from_end, inner)

    def _product(self, name: str, args: tuple[Any, ...], result: Tensor) -> BatchAxis:
        added: Any = None
        if name in ("addmm", "baddbmm"):
            added, *args_left = args
            if self.axis_of(added) is not None:
                raise ExamplesMeet(name)
            args = tuple(args_left)
        elif name == "linear":
            added = args[2] if len(args) > 2 else None
        axis = self._multiplied(name, args)
        self._refuse_table(name, added, axis.axis - result.ndim)
        return axis

    def _multiplied(self, name: str, args: tuple[Any, ...]) -> BatchAxis:
        left, right = args[0], args[1]
        of_left, of_right = self.axis_of(left), self.axis_of(right)
        if name in ("bmm", "baddbmm"):
            axes = {axis for axis in (of_left, of_right) if axis is not None}
            both = of_left is not None and of_right is not None
            if len(axes) == 1 and (axis := axes.pop()) is not UNIFORM and axis.axis == 0 and both:
                return axis
            if of_right is None and of_left is not None and of_left is not UNIFORM and of_left.axis == 1:
                return of_left
            raise ExamplesMeet(name)
        if "convolution" in name:
            axis = self._only(name, of_left, others=args[1:3])
            if axis.axis != 0:
                raise ExamplesMeet(name)
            return axis
        if name == "linear":
            axis = self._only(name, of_left, others=args[1:3])
            if axis.axis == left.ndim - 1:
                raise ExamplesMeet(name)
            return axis
        if of_right is None and of_left is not None and of_left is not UNIFORM and of_left.axis == 0:
            return of_left
        if of_left is None and of_right is not None and of_right is not UNIFORM and of_right.axis == 1:
            return of_right
        raise ExamplesMeet(name)

    def _attention(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BatchAxis:
        axes = {self.axis_of(part) for part in args[:3]}
        rest = [*tensors_in(args[3:]), *tensors_in(kwargs.values())]
        if len(axes) != 1 or None in axes or UNIFORM in axes:
            raise ExamplesMeet(name)
        axis = axes.pop()
        assert axis is not None
        for mask in rest:
            own = self.axis_of(mask)
            if own not in (None, axis):
                raise ExamplesMeet(name)
            self._refuse_table(name, mask, -args[0].ndim)
        if axis.axis != 0 or args[0].ndim < 3:
            raise ExamplesMeet(name)
        return axis

    def _joined(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> BatchAxis:
        parts, dim = args[0], args[1] if len(args) > 1 else kwargs.get("dim", 0)
        axes = {axis for part in parts if (axis := self.axis_of(part)) is not UNIFORM}
        axis = next((axis for axis in axes if axis is not None), None)
        if len(axes) != 1 or axis is None:
            raise ExamplesMeet(f"{name} with a table of the length of the batch")
        dim %= result.ndim
        if name == "stack":
            return BatchAxis(axis.axis + (dim <= axis.axis), axis.inner)
        return axis if dim != axis.axis else self._refused(name)

    def _reduced(
        self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], axis: BatchAxis, first: Tensor
    ) -> BatchAxis:
        named = _named(func, args, kwargs)
        dims = _dims([named["dim"]], first.ndim) if named.get("dim") is not None else []
        if not dims or axis.axis in dims:
            raise ExamplesMeet(f"{name} over the batch")
        return axis if named.get("keepdim") else BatchAxis(axis.axis - sum(d < axis.axis for d in dims), axis.inner)

    def _along(
        self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], axis: BatchAxis, first: Tensor
    ) -> BatchAxis:
        named = _named(func, args, kwargs)
        given = named.get("dims", named.get("dim", -1))
        if name == "roll" and "dims" not in named:  # of all values in a row
            given = []
        if given in ([], ()) or axis.axis in _dims([given], first.ndim):
            raise ExamplesMeet(f"{name} over the batch")
        return axis

    def _cut(
        self,
        name: str,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        axis: BatchAxis,
        first: Tensor,
        result: Tensor,
    ) -> BatchAxis:
        named = _named(func, args, kwargs)
        dim = named.get("dim", named.get("dimension", 0)) % first.ndim
        if dim != axis.axis:
            if name == "gather" and self.axis_of(args[2]) != axis:
                raise ExamplesMeet(name)
            if name == "index_select" and self.axis_of(args[2]) is not None:
                raise ExamplesMeet(name)
            return axis
        if name == "slice" and _takes_all(named, first.shape[dim]):
            return axis
        raise ExamplesMeet(f"{name} of the batch")


def _reshaped(name: str, axis: BatchAxis, old: tuple[int, ...], new: tuple[int, ...], n: int) -> BatchAxis:
    """Return the axis after a reshape that keeps the places of each example together."""
    before = math.prod(old[: axis.axis])
    rest = axis.inner * math.prod(old[axis.axis + 1 :])
    for place in range(len(new)):
        if math.prod(new[:place]) == before and new[place] % n == 0 and new[place]:
            inner = new[place] // n
            if rest % inner == 0:
                return BatchAxis(place, inner)
    raise ExamplesMeet(f"{name} from {old} to {new}")


def _same_places(tensor: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> bool:
    """Return whether a view of the memory of a tensor is that tensor: pooling over images does so for its strides."""
    axes = zip(tensor.shape, tensor.stride(), size, stride, strict=False)
    return (
        len(size) == tensor.ndim
        and storage_offset in (None, tensor.storage_offset())
        and all(length == same and (step == by or length < 2) for length, step, same, by in axes)
    )


def _takes_all(named: dict[str, Any], length: int) -> bool:
    """Return whether a slice takes all of an axis of any length: `x[:64]` takes the first 64 of a longer one."""
    start, end, step = named.get("start"), named.get("end"), named.get("step", 1)
    return not start and (end is None or end == length or end >= 2**62) and step == 1


def memory_of(tensor: Tensor) -> int:
    """Return where the memory of a tensor begins; 0 without any."""
    with DisableTorchFunction():
        return tensor.untyped_storage().data_ptr()


def _named(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an operation by their names."""
    names = [argument.name for argument in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _dims(given: Sequence[Any], ndim: int) -> list[int]:
    flat = [d for part in given for d in (part if isinstance(part, (list, tuple)) else [part])]
    return [d % ndim for d in flat] if ndim else []


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors in lists and tuples, in order."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(tensors_in(value))
    return found
