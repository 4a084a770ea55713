"""What a measure of the network itself, not of its loss, is given."""

from typing import Any, NamedTuple

import numpy as np

Tree = Any


class Network(NamedTuple):
    """A Linen network beside the inputs that its measures are taken on."""

    module: Any
    variables: Tree  # trained, masks applied
    untrained: Tree
    batches: list[Tree]  # (inputs, labels), normalized
    unit: np.ndarray  # what a change of 1 of a stored pixel in 0..1 is in inputs; 1 of others
    low: np.ndarray  # least and largest input there is, inf where there is none
    high: np.ndarray
