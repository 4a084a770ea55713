"""How many training steps one call takes; no effect on results."""

from functools import partial

from prunejax.cluster import distributed

CALL_SECONDS = 1.0  # aim for one call of training steps: how long a signal may have to wait


class Pace:
    """Steps of the next call, the same in all processes; adapted to CALL_SECONDS."""

    def __init__(self) -> None:
        """8 steps at first."""
        self.steps = 8

    def took(self, steps: int, seconds: float) -> None:
        """Of the last call; all processes tell."""
        self.steps = distributed.on_main(partial(self._next, steps, seconds))

    def _next(self, steps: int, seconds: float) -> int:
        if seconds < CALL_SECONDS / 4:
            return min(2 * self.steps, 1 << 20)
        if seconds > 2 * CALL_SECONDS:
            return max(1, int(steps * CALL_SECONDS / seconds))
        return self.steps
