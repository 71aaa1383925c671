"""A device that is not there: tensors that hold numbers of the CPU, call themselves cuda:0, mix with no others, and are counted.

    with Pretended() as device:
        work(torch.device("cuda"))
    device.syncs, device.mixed

What a real device would have to wait for is a synchronisation: a number, a truth value or a list taken out, an array or a copy on
the CPU, results whose size depends on values. Tensors without axes mix, as they do on a device. Gradients pass both ways.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
WAITING = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "unique_dim", "is_nonzero"}
"""Operators of aten whose result the program waits for."""


class There(torch.Tensor):
    """A tensor on the device."""

    held: torch.Tensor
    on: Pretended
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor, on: Pretended) -> There:
        held = held.resolve_conj().resolve_neg()
        made: There = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype
        )
        made.held, made.on = held.detach(), on
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"There({self.held!r})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        mine = [t for t in tensors if isinstance(t, There)]
        on, name = mine[0].on, func.overloadpacket.__name__
        on.launches += 1
        if name == "copy_" and len(mine) == 1:
            # To the device without waiting; from it, not.
            on.syncs["to the CPU"] += not isinstance(args[0], There)
        elif (
            name in ("index", "index_put", "index_put_")
            and isinstance(args[0], There)
            and not _mixed(args[2:])
        ):
            pass  # Indices may be on the CPU: torch copies them.
        elif len(mine) < len(tensors) and any(t.ndim > 0 and not isinstance(t, There) for t in tensors):
            raise RuntimeError(f"{name}: tensors on cuda:0 and on the CPU")
        if name in WAITING or (name in ("index", "index_put", "index_put_") and _masked(args)):
            on.syncs[name] += 1
        given = kwargs.pop("device", None)
        found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if given is not None and torch.device(given).type == "cpu":
            on.syncs["to the CPU"] += 1
            return found
        if name.endswith("_") and not name.startswith("_"):
            return args[0]
        if "out" in kwargs:
            return kwargs["out"]
        return tree_map(lambda t: There(t, on) if isinstance(t, torch.Tensor) else t, found)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, There) else value


def _mixed(args: Sequence[Any]) -> bool:
    return any(isinstance(t, torch.Tensor) and t.ndim > 0 and not isinstance(t, There) for t in args)


def _masked(args: Sequence[Any]) -> bool:
    return any(isinstance(t, torch.Tensor) and t.dtype == torch.bool for t in tree_leaves(args[1]))


class _Moved(torch.autograd.Function):
    """To the device, or (None) from it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, on: Pretended | None) -> torch.Tensor:
        ctx.on = x.on if isinstance(x, There) else None
        return There(x, on) if on is not None else _held(x).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _Moved.apply(gradients[0], ctx.on), None  # type: ignore[no-untyped-call]


class Pretended(TorchFunctionMode):
    """The device, while it is there. syncs: by what made the program wait; launches: operators that ran there."""

    def __init__(self) -> None:
        super().__init__()
        self.syncs: Counter[str] = Counter()
        self.launches = 0

    def __enter__(self) -> Pretended:
        self._free, torch.cuda.mem_get_info = torch.cuda.mem_get_info, lambda *_: (1 << 31, 1 << 32)
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        torch.cuda.mem_get_info = self._free
        super().__exit__(*raised)

    @property
    def waits(self) -> int:
        """Synchronisations of all kinds."""
        return self.syncs.total()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        source = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if name in ("to", "cuda", "cpu"):
            assert source is not None
            return self._moved(source, name, args[1:], kwargs)
        if name in ("numpy", "tolist", "__array__") and isinstance(source, There):
            self.syncs[name] += 1
            return getattr(source.held, name)(*args[1:], **kwargs)
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted).type == "cuda" and not isinstance(source, There):
            kwargs.pop("device")
            return tree_map(
                lambda t: There(t, self) if isinstance(t, torch.Tensor) else t, func(*args, **kwargs)
            )
        if wanted is not None and torch.device(wanted).type == "cuda":
            kwargs.pop("device")
        return func(*args, **kwargs)

    def _moved(self, x: torch.Tensor, name: str, rest: Sequence[Any], kwargs: dict[str, Any]) -> torch.Tensor:
        """`to`, `cuda` and `cpu`: a device, a type, another tensor whose device and type count, in any order."""
        given = [*rest, kwargs.get("device"), kwargs.get("dtype"), kwargs.get("other")]
        like = next((v for v in given if isinstance(v, torch.Tensor)), None)
        where: Any = {"cuda": CUDA, "cpu": torch.device("cpu")}.get(name) or (
            like.device if like is not None else None
        )
        where = next((torch.device(v) for v in given if isinstance(v, str | torch.device)), where)
        kind = next(
            (v for v in given if isinstance(v, torch.dtype)), like.dtype if like is not None else None
        )
        if where is not None and where.type == "cuda" and not isinstance(x, There):
            x = _Moved.apply(x, self)  # type: ignore[no-untyped-call]
        elif where is not None and where.type == "cpu" and isinstance(x, There):
            self.syncs["to the CPU"] += 1
            x = _Moved.apply(x, None)  # type: ignore[no-untyped-call]
        return (
            x
            if kind is None or kind == x.dtype
            else x.type(kind)
            if not isinstance(x, There)
            else torch.ops.aten._to_copy(x, dtype=kind)
        )
