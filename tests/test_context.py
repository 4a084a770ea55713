"""What measures share of a network: computed once, and by threads side by side."""

import threading
from concurrent.futures import ThreadPoolExecutor

from prunejax.measures.context import once


class Counted:
    """Something with a value that takes its time."""

    def __init__(self, wait=lambda: None):
        self.calls, self.wait = 0, wait

    @once
    def value(self):
        """It."""
        self.calls += 1
        self.wait()
        return self.calls


def test_a_value_is_computed_once_and_documented():
    counted = Counted()
    assert (counted.value, counted.value, counted.calls) == (1, 1, 1)
    assert Counted.value.__doc__ == "It."


def test_threads_compute_those_of_two_instances_at_the_same_time():
    meet = threading.Barrier(2, timeout=30)  # raises unless both are inside
    both = [Counted(meet.wait) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda counted: counted.value, both)) == [1, 1]
