"""Own code: what a forward pass does beside the operations of torch, through which alone it can be followed."""

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from dpcomp.training.pytorch.rows.book_keeping.batch_axis import ExamplesMeet, FollowedExamples, tensors_in
from dpcomp.training.pytorch.rows.own_functions import own_functions
from dpcomp.training.pytorch.rows.structures import Call, along_examples

# What tells the form of a tensor and none of its values, or changes values by operations that are followed.
# fmt: off
_OF_FORM = frozenset({
    "__iter__", "__len__", "__setitem__", "_version", "device", "dim", "dim_order", "dtype", "element_size",
    "get_device", "itemsize", "layout", "names", "nbytes", "ndim", "ndimension", "nelement", "numel", "output_nr",
    "requires_grad", "retain_grad", "retains_grad", "shape", "size", "storage_offset", "stride", "sym_numel",
    "sym_size", "type",
})
# fmt: on
_BY_PYTHON = frozenset({"apply_", "map_", "map2_"})  # call a function of Python with each value


class NothingRead(TorchFunctionMode):
    """Refuses that a pass takes values of the batch out of torch, or attaches code to their gradients.

    Such as `x.numpy()`, `x.tolist()`, `x.register_hook(f)` and `x.data = y`: no operation of torch shows what they do.

    Args:
        following: Knows which tensors depend on the batch.

    Raises:
        ExamplesMeet: Naming the function.
    """

    def __init__(self, following: FollowedExamples):
        super().__init__()
        self._following = following

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Call a function, and refuse one that gives something else than tensors which are followed."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = tensors_in((*args, *kwargs.values()))
        if any(self._following.axis_of(part) is not None for part in given):
            name = _name(func)
            found = tensors_in([out])
            followed = bool(found) and all(map(self._following.knows, found))
            told = name in _OF_FORM or name.startswith("is_")
            if name in _BY_PYTHON or not (followed or (told and not found)):
                raise ExamplesMeet(f"{name}, which takes a value of the batch out of torch,")
        return out


class NeverRead:
    """Stands for a string or number of an example, and refuses that a pass reads it: no operation of torch shows that.

    Raises:
        ExamplesMeet: Whatever is asked of it.
    """

    def _read(self, *_: Any) -> Any:
        raise ExamplesMeet("reading a string or number of an example, which is done past torch's operations,")

    __class__ = property(_read)  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    # fmt: off
    __getattr__ = __str__ = __repr__ = __format__ = __hash__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = _read
    __ge__ = __bool__ = __len__ = __iter__ = __getitem__ = __contains__ = __int__ = __float__ = __complex__ = _read
    __index__ = __bytes__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = _read
    __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __neg__ = __abs__ = _read
    # fmt: on


def unread(call: Call) -> Call:
    """Return a call whose strings and numbers of examples cannot be read.

    **Privacy:** passes get these too, so that a model does with them what it did when it was followed: `type(x)` and
    `x is y` are answered by no method, and could tell.
    """
    return along_examples(lambda part: part, lambda column: [NeverRead()] * len(column), call)


def refuse_own_backward(outputs: list[Tensor]) -> None:
    """Refuse outputs behind which a backward pass runs code of Python: it gets the gradients of all examples at once.

    Args:
        outputs: The outputs of a forward pass.

    Raises:
        ExamplesMeet: Naming the function.
    """
    for node in own_functions(outputs):
        raise ExamplesMeet(f"{type(node).__name__}, a backward function or hook of Python,")


def _name(func: Any) -> str:
    """Return the name of a function, and of a property the name of the property."""
    name = getattr(func, "__name__", str(func))
    if name not in ("__get__", "__set__"):
        return name
    of_property = getattr(getattr(func, "__self__", None), "__name__", "")
    return of_property if name == "__get__" or of_property == "requires_grad" else f"setting {of_property}"
