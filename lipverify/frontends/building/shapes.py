"""Views, selections and padding, in the source's axis numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lipverify import ops
from lipverify.errors import InvalidFile
from lipverify.frontends.building.nodes import Nodes, Operand, Value
from lipverify.loading.names import display


class Shapes(Nodes):
    """What moves, copies or drops entries."""

    def reshape(self, v: Value, target: Sequence[int]) -> Value:
        """Row-major reshape; one entry may be -1. The batch axis stays where it was if that is possible."""
        total = math.prod(v.shape)
        known = math.prod(size for size in target if size != -1)
        if target.count(-1) > 1 or any(size < -1 for size in target):
            raise InvalidFile(f'{self.what} "{display(self.where)}": impossible shape {list(target)}')
        if -1 in target and known and total % known == 0:
            target = [total // known if size == -1 else size for size in target]
        if math.prod(target) != total:
            raise InvalidFile(
                f'{self.what} "{display(self.where)}": {list(v.source_shape)} does not reshape to {list(target)}'
            )
        batch: int | None = None
        candidates = [0] if v.batch is None else [v.batch, 0]
        if len(target) > 1 or v.rank == 1:
            batch = next((a for a in candidates if a < len(target) and target[a] == 1), None)
        if batch is None and v.batch is not None and self.symbolic_batch:
            raise self.refuse(f"merges the batch axis with others: reshape to {list(target)}", (v,))
        return self.view(v, tuple(size for a, size in enumerate(target) if a != batch), batch)

    def flatten(self, v: Value, start: int, end: int) -> Value:
        """Source axes start..end (inclusive) become one."""
        first, last = start % max(v.rank, 1), end % max(v.rank, 1)
        if v.batch is not None and first <= v.batch <= last and first != last and self.symbolic_batch:
            raise self.refuse("flattens the batch axis together with others", (v,))
        shape = v.source_shape
        return self.reshape(v, [*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]])

    def transpose(self, v: Value, order: Sequence[int]) -> Value:
        """Source axes in a new order."""
        source = [axis % v.rank for axis in order]
        batch = None if v.batch is None else source.index(v.batch)
        sample = tuple(self.axis(v, axis) for axis in source if axis != v.batch)
        if sample == tuple(range(len(sample))):
            return replace(v, batch=batch)
        return self.add(ops.Transpose(sample), (v,), batch)

    def unsqueeze(self, v: Value, axes: Sequence[int]) -> Value:
        """New axes of size 1 at these positions of the result."""
        rank = v.rank + len(axes)
        new = {axis % rank for axis in axes}
        kept = [axis for axis in range(rank) if axis not in new]
        batch = None if v.batch is None else kept[v.batch]
        sizes = dict(zip(kept, v.source_shape, strict=True))
        shape = tuple(sizes.get(axis, 1) for axis in range(rank) if axis != batch)
        return self.view(v, shape, batch)

    def squeeze(self, v: Value, axes: Sequence[int] | None) -> Value:
        """Without these axes of size 1; None drops all of them except the batch axis of a symbolic batch."""
        source = v.source_shape
        if axes is None:
            gone = {
                a for a, size in enumerate(source) if size == 1 and not (a == v.batch and self.symbolic_batch)
            }
        else:
            gone = {axis % v.rank for axis in axes}
            if v.batch in gone and self.symbolic_batch:
                raise self.refuse("removes the batch axis", (v,))
        if any(source[axis] != 1 for axis in gone):
            raise InvalidFile(
                f'{self.what} "{display(self.where)}": cannot squeeze {sorted(gone)} of {list(source)}'
            )
        kept = [axis for axis in range(v.rank) if axis not in gone]
        batch = kept.index(v.batch) if v.batch in kept else None
        return self.view(v, tuple(source[axis] for axis in kept if axis != v.batch), batch)

    def expand(self, v: Value, target: Sequence[int]) -> Value:
        """Broadcast to a source shape of at least the same rank; -1 keeps a size."""
        v = self.unsqueeze(v, range(len(target) - v.rank)) if len(target) > v.rank else v
        wanted = []
        for axis, (have, want) in enumerate(zip(v.source_shape, target, strict=True)):
            if axis == v.batch:
                if want not in (1, -1):
                    raise self.refuse(f"repeats the sample along the batch axis: {list(target)}", (v,))
                continue
            if want not in (have, -1, 1) and have != 1:
                raise InvalidFile(f'{self.what} "{display(self.where)}": cannot expand {have} to {want}')
            wanted.append(max(have, want))
        shape = tuple(wanted)
        return v if shape == v.shape else self.add(ops.Expand(shape), (v,), v.batch)

    def slice(self, v: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
        """Entries start, start + step, ... before stop; Python's rules for negative and too large ends; step may be negative."""
        size = v.source_shape[axis % v.rank]
        taken = range(size)[start:stop:step]
        if taken == range(size):
            return v
        v = self.free(v, axis)
        sample = self.axis(v, axis)
        if len(taken) == 0:
            raise self.refuse("takes an empty slice", (v,))
        if step < 0:
            return self.add(ops.Gather(sample, torch.tensor(list(taken))), (v,), v.batch)
        return self.add(ops.Slice(sample, taken.start, taken[-1] + 1, step), (v,), v.batch)

    def gather(self, v: Value, axis: int, indices: Tensor) -> Value:
        """Entries with stored indices of any rank along one axis; the axes of `indices` replace it."""
        v = self.free(v, axis)
        axis %= v.rank
        sample, size = self.axis(v, axis), v.source_shape[axis]
        flat = indices.reshape(-1).to(torch.int64)
        if bool(((flat < -size) | (flat >= size)).any()) or flat.numel() == 0:
            raise InvalidFile(f'{self.what} "{display(self.where)}": indices outside an axis of size {size}')
        flat = torch.where(flat < 0, flat + size, flat)
        contiguous = bool((flat == torch.arange(int(flat[0]), int(flat[0]) + flat.numel())).all())
        if contiguous:
            taken = self.slice(v, axis, int(flat[0]), int(flat[-1]) + 1)
        else:
            taken = self.add(ops.Gather(sample, flat), (v,), v.batch)
        if indices.ndim == 1:
            return taken
        shape = taken.source_shape
        batch = taken.batch
        if batch is not None and batch > axis:
            batch += indices.ndim - 1
        target = (*shape[:axis], *indices.shape, *shape[axis + 1 :])
        return self.view(taken, tuple(s for a, s in enumerate(target) if a != batch), batch)

    def concat(self, operands: Sequence[Operand], axis: int) -> Value:
        """Side by side along one axis; stored tensors take part as constants."""
        rank = operands[0].rank if isinstance(operands[0], Value) else operands[0].ndim
        axis %= rank
        batches = {v.batch for v in operands if isinstance(v, Value)}
        if len(batches) > 1 or axis in batches:
            operands = [self.view(v, v.source_shape, None) if isinstance(v, Value) else v for v in operands]
            if self.symbolic_batch:
                raise self.refuse("joins tensors along the batch axis", operands)
            batches = {None}
        batch = batches.pop()
        values = [v if isinstance(v, Value) else self.constant(v, batch) for v in operands]
        if len(values) == 1:
            return values[0]
        return self.add(ops.Concat(self.axis(values[0], axis)), values, batch)

    def pad(
        self, v: Value, pads: Sequence[tuple[int, int]], mode: str = "constant", fill: float = 0.0
    ) -> Value:
        """Padding (before, after) for every source axis; negative sizes cut."""
        for axis, (before, after) in enumerate(pads):
            if before < 0 or after < 0:
                size = v.source_shape[axis]
                v = self.slice(v, axis, max(-before, 0), size - max(-after, 0))
        wanted = [(max(a, 0), max(b, 0)) for a, b in pads]
        if not any(a or b for a, b in wanted):
            return v
        v = self.free(v, *(axis for axis, pair in enumerate(wanted) if any(pair)))
        if v.batch is not None and any(wanted[v.batch]):
            raise self.refuse("pads the batch axis", (v,))
        sample = tuple(pair for axis, pair in enumerate(wanted) if axis != v.batch)
        return self.add(ops.Pad(sample, mode, fill), (v,), v.batch)
