"""Ctrl-C at a chosen moment."""

from __future__ import annotations


class Stop:
    """Stands for Ctrl-C: interrupts when a stage is reported the given number of times."""

    def __init__(self, stage: str, count: int) -> None:
        self.stage, self.left = stage, count

    def __call__(self, stage: str, best: float | None) -> None:
        self.left -= stage.startswith(self.stage)
        if self.left == 0:
            self.left = -1
            raise KeyboardInterrupt
