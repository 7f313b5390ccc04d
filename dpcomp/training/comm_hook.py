"""A communication hook for PyTorch's DistributedDataParallel: gradients travel as payloads of a codec."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float32
from torch.nn.parallel import DistributedDataParallel

from dpcomp.codec.arrays import Flat, Form, flattened
from dpcomp.codec.codec import Codec
from dpcomp.codec.compressor import MOST_PAYLOADS, SENDER_BITS, with_residual
from dpcomp.codec.standalone import Message, decode
from dpcomp.core.checks import check_type, whole_number
from dpcomp.core.finite import all_finite


class CommHook:
    """A communication hook; `comm_hook` makes one. Each process has its own, for one model.

    Attributes:
        codec: The codec.
        feedback: Whether what the codec drops is added to the next gradient.
        bytes_sent: The bytes of all payloads that this process has made so far.
    """

    def __init__(self, codec: Codec, *, feedback: bool):
        check_type(codec, Codec, f"comm_hook(codec) is {codec!r}: give a dp.Codec")
        check_type(feedback, bool, f"comm_hook(feedback) is {feedback!r}: give True or False")
        self.codec, self.feedback, self.bytes_sent = codec, feedback, 0
        self.__name__ = self.__qualname__ = "comm_hook"  # DistributedDataParallel reads both
        self._digest = codec.standalone_digest
        self._counter = 0
        # By parameter, since buckets are made anew after the first step. A parameter is held with its residual, so that
        # no other one gets its identity.
        self._residuals: dict[int, tuple[torch.Tensor, np.ndarray]] = {}

    def __call__(
        self,
        state: Any,
        bucket: dist.GradBucket,  # pyright: ignore[reportPrivateImportUsage]
    ) -> torch.futures.Future[torch.Tensor]:
        """Return the mean of the gradients of all processes, as their payloads decode.

        Args:
            state: The process group that was given to `register_comm_hook`; None for the default one.
            bucket: A bucket of gradients.

        Raises:
            RuntimeError: The payload of another process cannot be decoded: its codec or model is another.
        """
        buffer, parameters = bucket.buffer(), bucket.parameters()
        future = torch.futures.Future[torch.Tensor]()
        mean = self._mean(buffer, parameters, state)
        future.set_result(torch.from_numpy(mean).to(dtype=buffer.dtype, device=buffer.device))
        return future

    def state_dict(self, model: torch.nn.Module) -> dict[str, Any]:
        """Return the counter and the residuals of this process, to be saved beside the model's state.

        Residuals differ between processes, so each process saves its own.

        Args:
            model: The model whose gradients the hook gets, whose names of parameters the state has; wrapped in
                `DistributedDataParallel` or not.

        Returns:
            `{"counter": number, "residuals": {name: tensor}}`, of copies, for `torch.save`.

        Raises:
            ValueError: There is a residual of a parameter that the model does not have.
        """
        names = {id(parameter): name for name, parameter in _named(model).items()}
        if set(self._residuals) - set(names):
            raise ValueError(
                "comm_hook.state_dict(model): there are residuals of parameters that the model does not have: give the "
                "model that the hook is registered with"
            )
        residuals = {
            names[key]: torch.from_numpy(vector.copy()).reshape(parameter.shape)
            for key, (parameter, vector) in self._residuals.items()
        }
        return {"counter": self._counter, "residuals": residuals}

    def load_state_dict(self, state: Mapping[str, Any], model: torch.nn.Module) -> None:
        """Take the counter and the residuals that `state_dict` returned in the process of the same rank.

        All that was dropped is kept; but PyTorch arranges the gradients of the first step of a model in other buckets
        than those of later steps, so what a codec chooses in the first step after this may differ.

        Args:
            state: What `state_dict` returned.
            model: The model whose gradients the hook gets.

        Raises:
            TypeError: The state is no mapping, or holds something else.
            ValueError: It lacks a part, names parameters or shapes that the model does not have, has residuals though
                there is no feedback, or holds values that are not finite. Nothing has changed then.
        """
        where = "comm_hook.load_state_dict"
        check_type(state, Mapping, f"{where}: a state is a mapping, not {type(state).__name__}")
        if set(state) != {"counter", "residuals"}:
            raise ValueError(
                f"{where}: the state has {sorted(map(str, state))}, and one of a hook has 'counter' and 'residuals': "
                "give what state_dict(model) returned"
            )
        counter = whole_number(state["counter"], f"{where}: the counter", least=0, most=MOST_PAYLOADS - 1)
        check_type(state["residuals"], Mapping, f"{where}: the residuals are no mapping of names to tensors")
        if state["residuals"] and not self.feedback:
            raise ValueError(f"{where}: the state has residuals, and this hook has feedback=False")
        named, residuals = _named(model), {}
        for name, tensor in state["residuals"].items():
            parameter, shape = named.get(name), tuple(getattr(tensor, "shape", ()))
            if parameter is None or tuple(parameter.shape) != shape:
                has = "no such parameter" if parameter is None else f"one of shape {tuple(parameter.shape)}"
                raise ValueError(
                    f"{where}: the residual {name!r} has shape {shape}, and the model has {has}: give the model of "
                    "state_dict(model)"
                )
            vector = flattened(tensor, f"{where}, residual {name!r}").vector
            residuals[id(parameter)] = parameter, vector.copy()
        self._counter, self._residuals = counter, residuals

    def _mean(self, buffer: torch.Tensor, parameters: Sequence[torch.Tensor], group: Any) -> Float32[np.ndarray, "d"]:
        form = _bucket_form(tuple(parameter.numel() for parameter in parameters))
        payload, message = self._encoded(buffer, parameters, form, dist.get_rank(group))
        payloads = all_gathered(payload, buffer.device, group)
        total = np.zeros(buffer.numel(), dtype=np.float32)
        for rank, other in enumerate(payloads):  # in the same order everywhere, so that all have the same bits
            if not other:  # as all-reduce gives, so that a GradScaler sees it in every process and skips the step
                return np.full_like(total, np.nan)
            own = message if rank == dist.get_rank(group) else None
            decoded = self._decoded(other, form, rank) if own is None else own.vector(len(total))
            with np.errstate(over="ignore", invalid="ignore"):
                total += decoded
        return total / np.float32(len(payloads))

    def _encoded(
        self, buffer: torch.Tensor, parameters: Sequence[torch.Tensor], form: Form, rank: int
    ) -> tuple[bytes, Message | None]:
        """Return the payload of a bucket, or nothing where its gradients are not finite: then no state has changed."""
        number = self._counter << SENDER_BITS | rank
        self._counter += 1
        target = buffer.detach().float().cpu().numpy()
        residual = self._residual(parameters)
        if residual is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                target = target + residual
        if not all_finite(target):  # an error in one process would let the others wait for its payload
            return b"", None
        flat = Flat(form=form, vector=target)
        message, left = with_residual(self.codec, flat, None, number, self._digest, feedback=self.feedback)
        if left is not None:
            edges = np.cumsum([0, *(size for _, (size,) in form.coded)])
            for parameter, (start, stop) in zip(parameters, pairwise(edges), strict=True):
                self._residuals[id(parameter)] = parameter, left[start:stop]
        self.bytes_sent += len(message.payload)
        return message.payload, message

    def _residual(self, parameters: Sequence[torch.Tensor]) -> Float32[np.ndarray, "d"] | None:
        """Return what earlier payloads dropped of the gradients of parameters; None for nothing."""
        kept = [self._residuals.get(id(parameter)) for parameter in parameters]
        if not any(kept):
            return None
        parts = [
            np.zeros(parameter.numel(), np.float32) if held is None else held[1]
            for parameter, held in zip(parameters, kept, strict=True)
        ]
        return np.concatenate(parts)

    def _decoded(self, payload: bytes, form: Form, rank: int) -> Float32[np.ndarray, "d"]:
        try:
            return decode(self.codec, payload, form, self._digest)[0]
        except Exception as error:
            raise RuntimeError(
                f"comm_hook: the payload of process {rank} cannot be decoded here: {error}. All processes need the "
                "same codec, model and version of dpcomp"
            ) from error


def _named(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters of a model by the names that they have without DistributedDataParallel."""
    return dict((model.module if isinstance(model, DistributedDataParallel) else model).named_parameters())


@lru_cache(maxsize=64)
def _bucket_form(sizes: tuple[int, ...]) -> Form:
    """Return the form of a bucket, with a layer for each parameter."""
    return Form(coded=tuple((str(number), (size,)) for number, size in enumerate(sizes)))


def comm_hook(codec: Codec, *, feedback: bool = True) -> CommHook:
    """Make a hook that sends the gradients of DistributedDataParallel as payloads of a codec.

    Each process encodes its bucket of gradients, and what the codec dropped of earlier ones; the payloads are gathered
    as byte tensors with their lengths, without pickled objects; and each process takes the mean of what they decode to,
    which is the same bits in all of them. The layers of a bucket are those of its parameters. Random parts draw other
    numbers in each process and step.

    Gradients that are not finite make the mean NaN in all processes, as the all-reduce does; then nothing is kept of
    that bucket.

    The codec runs on the CPU, and gathering takes n times the bytes of a payload in each of n processes: it pays where
    the network is slow and processes are few. Residuals and counter are not in the model's state:
    `hook.state_dict(model)` in each process saves them, and `hook.load_state_dict(state, model)` takes them back.

    **Privacy:** this adds no noise and charges nothing: the gradients are the data's.

    Args:
        codec: The codec; one that `codec.compress` takes.
        feedback: Whether what the codec drops is added to the next gradient (Seide et al. 2014, section 2).

    Returns:
        The hook, for `model.register_comm_hook(None, hook)`; a process group may stand in the place of None.

    Raises:
        TypeError: `codec` is no `dp.Codec`, or `feedback` no bool.
        ValueError: The codec needs a link, as `codec.compress` says.

    Examples:
        >>> import dpcomp as dp
        >>> hook = comm_hook(dp.Codec(sparsify=dp.TopK(0.01), quantize=dp.Uniform(4)))
        >>> hook.bytes_sent  # model.register_comm_hook(None, hook) with a DistributedDataParallel
        0
    """
    return CommHook(codec, feedback=feedback)


def all_gathered(payload: bytes, device: torch.device, group: Any) -> list[bytes]:
    """Gather the bytes of all processes: their lengths first, then the bytes, filled up to the longest.

    Args:
        payload: The bytes of this process; they may be empty.
        device: Where tensors of the process group lie.
        group: The process group; None for the default one.

    Returns:
        The bytes of each process, in the order of their ranks.
    """
    own = torch.tensor([len(payload)], dtype=torch.int64, device=device)
    lengths = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(lengths, own, group=group)
    counts = [int(length) for length in lengths]
    filled = bytearray(payload.ljust(max(1, *counts), b"\0"))
    sent = torch.frombuffer(filled, dtype=torch.uint8).to(device)
    parts = [torch.empty_like(sent) for _ in counts]
    dist.all_gather(parts, sent, group=group)
    return [part[:count].cpu().numpy().tobytes() for part, count in zip(parts, counts, strict=True)]
