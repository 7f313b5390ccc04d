"""Arrays of NumPy, PyTorch and JAX as one flat float32 vector beside exact bytes, and back."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_jax_array, is_torch_array
from jaxtyping import Float32, Shaped

from dpcomp.core.errors import CorruptPayload
from dpcomp.core.finite import all_finite
from dpcomp.core.layout import Layout

# The largest number of each type of floats: of a narrow type, a decoded value beyond it becomes this number.
LARGEST = {
    "float16": 65504.0,
    "bfloat16": float(np.ldexp(255.0, 120)),
    "float32": float(np.finfo(np.float32).max),
    "float64": float(np.finfo(np.float64).max),
}
EXACT = frozenset({"bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))})
DIGEST_BYTES = 4


@dataclass(frozen=True)
class Form:
    """The names and shapes of arrays, which a payload does not hold; of one array without a name, the name is empty.

    Attributes:
        coded: A pair (name, shape) for each array of floats, in the order of the flat vector.
        exact: A triple (name, shape, type) for each array of whole numbers or truth values.
    """

    coded: tuple[tuple[str, tuple[int, ...]], ...]
    exact: tuple[tuple[str, tuple[int, ...], str], ...] = ()

    @cached_property
    def layout(self) -> Layout | None:
        """The layers of the flat vector; None where it has no coordinates."""
        return Layout(self.coded) if any(0 not in shape for _, shape in self.coded) else None

    @cached_property
    def digest(self) -> bytes:
        """4 bytes that differ, but for chance, where a name, a shape or the type of an exact array does."""
        return hashlib.blake2b(repr((self.coded, self.exact)).encode(), digest_size=DIGEST_BYTES).digest()

    @cached_property
    def exact_bytes(self) -> int:
        """The bytes of all exact arrays."""
        return sum(int(np.prod(shape, dtype=np.int64)) * np.dtype(name).itemsize for _, shape, name in self.exact)


@dataclass(frozen=True, kw_only=True, eq=False)
class Flat:
    """The contents of arrays: a float32 vector, and bytes that are kept as they are.

    Attributes:
        form: The names and shapes of the arrays.
        vector: The (d,) values of all arrays of floats, finite; it may be a view of the caller's array.
        exact: The bytes of each exact array, little-endian.
    """

    form: Form
    vector: Float32[np.ndarray, "d"]
    exact: Sequence[bytes] = ()


def flattened(value: Any, where: str) -> Flat:
    """Read arrays as one vector.

    Args:
        value: An array of NumPy, PyTorch or JAX, or a mapping of names to them.
        where: The name of the public function, for errors.

    Returns:
        The contents of the arrays, sorted by name.

    Raises:
        TypeError: A value is no array, or an array has a type that is neither a float, a whole number nor a bool.
        ValueError: A float is not finite, or is beyond the range of float32.
    """
    arrays = named_arrays(value, where)
    form = form_of(arrays)
    coded = [_on_host(arrays[name], name, where) for name, _ in form.coded]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if len(coded) == 1:
            vector = coded[0].astype(np.float32, copy=False).reshape(-1)
        else:
            vector = np.empty(sum(array.size for array in coded), dtype=np.float32)
            start = 0
            for array in coded:
                vector[start : start + array.size].reshape(array.shape)[...] = array
                start += array.size
    if not all_finite(vector):
        _refuse_not_finite(coded, form, where)
    exact = [
        _on_host(arrays[name], name, where).astype(_little(kind), copy=False).tobytes() for name, _, kind in form.exact
    ]
    return Flat(form=form, vector=vector, exact=exact)


def named_arrays(value: Any, where: str) -> dict[str, Any]:
    """Return arrays by name, sorted by it, after a look at their types; one array alone has the empty name.

    Args:
        value: As for `flattened`.
        where: As for `flattened`.

    Raises:
        TypeError: As `flattened` does.
    """
    given = value if isinstance(value, Mapping) else {"": value}
    for name, array in given.items():
        if not isinstance(name, str):
            raise TypeError(f"{where}: the mapping has the name {name!r}: give names that are strings")
        _check_type(array, _called(name), where)
    return {name: given[name] for name in sorted(given)}


def form_of(arrays: Mapping[str, Any]) -> Form:
    """Return the names and shapes of arrays, which `named_arrays` has looked at.

    Args:
        arrays: The arrays by name, sorted by it.
    """
    specs = tuple((name, tuple(map(int, array.shape)), type_of(array)) for name, array in arrays.items())
    return _form(specs)


@lru_cache(maxsize=64)
def _form(specs: tuple[tuple[str, tuple[int, ...], str], ...]) -> Form:
    """Return the form of arrays, whose layout and digest are computed once."""
    return Form(
        coded=tuple((name, shape) for name, shape, kind in specs if kind in LARGEST),
        exact=tuple(spec for spec in specs if spec[2] in EXACT),
    )


def restored(arrays: Mapping[str, Any], form: Form, vector: Float32[np.ndarray, "d"], exact: bytes) -> dict[str, Any]:
    """Make arrays of a decoded vector, with the types, frameworks and devices of others.

    Args:
        arrays: The arrays that the result is like, by name.
        form: Their names and shapes.
        vector: The (d,) decoded values, which the caller gives up.
        exact: The bytes of all exact arrays.

    Returns:
        New arrays by name, in the order of `arrays`.

    Raises:
        CorruptPayload: A truth value is neither 0 nor 1.
    """
    made = dict.fromkeys(arrays)
    vector = vector if vector.flags.writeable else vector.copy()
    start = 0
    for name, shape in form.coded:
        stop = start + int(np.prod(shape, dtype=np.int64))
        made[name] = _like(_within(vector[start:stop].reshape(shape), type_of(arrays[name])), arrays[name])
        start = stop
    start = 0
    for name, shape, kind in form.exact:
        stop = start + int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
        numbers = np.frombuffer(exact[start:stop], dtype=np.uint8 if kind == "bool" else _little(kind))
        if kind == "bool" and (numbers > 1).any():
            raise CorruptPayload(f"{_called(name)} has a truth value that is neither 0 nor 1, which no sender writes")
        made[name] = _like(numbers.astype(kind).reshape(shape), arrays[name])
        start = stop
    return made


def type_of(array: Any) -> str:
    """Return the name of an array's type, such as "float32", in any framework."""
    return _name(array.dtype)


@lru_cache(maxsize=64)
def _name(dtype: Any) -> str:
    return getattr(dtype, "name", None) or str(dtype).removeprefix("torch.")


def is_numpy(array: Any) -> bool:
    """Return whether a value is NumPy's array, or a number of NumPy, which has a shape and a type as well."""
    return isinstance(array, (np.ndarray, np.generic))


def _check_type(array: Any, name: str, where: str) -> None:
    """Refuse what is no array, or an array whose type is none that a codec can send."""
    if isinstance(array, Mapping):
        raise TypeError(f"{where}: {name} is a mapping in a mapping: give one mapping of names to arrays")
    if not (is_numpy(array) or is_torch_array(array) or is_jax_array(array)):
        raise TypeError(
            f"{where}: {name} is a {type(array).__name__}: give an array of NumPy, PyTorch or JAX, or a mapping of "
            "names to arrays"
        )
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{where}: {name} is a masked array, whose mask would be lost: give .filled(0), and the mask")
    if (kind := type_of(array)) not in LARGEST and kind not in EXACT:
        advice = "give its real and imaginary parts" if kind.startswith("complex") else "convert it"
        raise TypeError(
            f"{where}: {name} has the type {kind}: floats of up to 64 bits are coded, and whole numbers and bools are "
            f"kept as they are; {advice}"
        )


def _on_host(array: Any, name: str, where: str) -> Shaped[np.ndarray, "..."]:
    """Return an array as NumPy's, which may be a view of it."""
    if isinstance(array, np.ndarray):
        return np.asarray(array)
    try:
        if is_torch_array(array):
            array = array.detach().cpu().resolve_neg()
            return (array.float() if type_of(array) == "bfloat16" else array).numpy()
        return np.asarray(array)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise TypeError(
            f"{where}: the values of {_called(name)} cannot be read ({error}): give a dense array that holds its values"
        ) from error


def _refuse_not_finite(coded: Sequence[Shaped[np.ndarray, "..."]], form: Form, where: str) -> None:
    """Refuse values of which one is not finite in float32, by its name and index."""
    for array, (name, _) in zip(coded, form.coded, strict=True):
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            finite = np.isfinite(array.astype(np.float32, copy=False))
        if finite.all():
            continue
        place = np.unravel_index(int(np.argmin(finite)), array.shape)
        index, value = ", ".join(map(str, map(int, place))), float(array[place])
        what = f"{where}: {_called(name)} has {value} at index [{index}]"
        if np.isfinite(value):
            raise ValueError(f"{what}, beyond ±{LARGEST['float32']:.4g}, the range of float32: scale the values")
        raise ValueError(f"{what}: a codec takes finite values alone, so nothing was coded; replace it first")


def _within(values: Float32[np.ndarray, "..."], kind: str) -> Float32[np.ndarray, "..."]:
    """Return values within the range of a type."""
    return np.clip(values, -LARGEST[kind], LARGEST[kind]) if kind.endswith("float16") else values


def _like(values: Shaped[np.ndarray, "..."], template: Any) -> Any:
    """Return new values as an array of the type, the framework and the device of another one."""
    if is_numpy(template):
        return values.astype(template.dtype, copy=False)
    make: Callable[..., Any] = array_namespace(template).asarray
    return make(values, dtype=template.dtype, device=template.device)


def _little(kind: str) -> np.dtype[Any]:
    return np.dtype(kind).newbyteorder("<")


def _called(name: str) -> str:
    return repr(name) if name else "the array"
