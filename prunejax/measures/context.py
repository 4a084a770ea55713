"""A trained network as measures see it; what they share is computed once."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import losses
from prunejax.curvature import splits, vectors
from prunejax.curvature.eigenpairs import MEMORY, Eigenpairs, eigenpairs
from prunejax.curvature.gradients import GradientMoment, forms_by_example, gradient_second_moment
from prunejax.curvature.krylov import row_bytes
from prunejax.curvature.operators import Hessian
from prunejax.curvature.trace import estimate_trace
from prunejax.measures.prunability import Curve, prune_curve

Tree = Any
TOLERANCE = 1e-3  # of eigenpairs: residual over the largest |eigenvalue|; both are recorded

T = TypeVar("T")


class Network(NamedTuple):
    """A Linen network beside the inputs that measures of itself, not of its loss, are taken on."""

    module: Any
    variables: Tree  # trained, masks applied
    untrained: Tree
    batches: list[Tree]  # (inputs, labels), normalized
    unit: np.ndarray  # what a change of 1 of a stored pixel in 0..1 is in inputs; 1 of others
    low: np.ndarray  # least and largest input there is, inf where there is none
    high: np.ndarray


class once(Generic[T]):
    """`functools.cached_property` without its lock, which Python 3.11 shares among all instances.

    Threads measure several networks at once: they waited for each other there.
    """

    def __init__(self, fn: Callable[[Any], T]) -> None:
        self._fn, self.__doc__ = fn, fn.__doc__

    def __get__(self, instance: Any, owner: Any = None) -> T:
        """What `fn` gives for the instance, kept in it under its name from then on."""
        if instance is None:
            return self  # type: ignore[return-value]  # of the class: what documentation reads
        found: T = self._fn(instance)
        instance.__dict__[self._fn.__name__] = found
        return found


@dataclasses.dataclass
class Context:
    """A trained network as measures see it.

    Attributes:
      loss: `(params, batch) -> scalar`, the mean over the batch in nats.
      per_example: `(params, batch) -> [examples]`; None where examples see each other (BatchNorm
        with batch statistics).
      evaluate: `(params, batch) -> {"loss": mean, "accuracy": fraction}`.
      params: parameters, masks applied.
      masks: the live subspace, or None for all coordinates.
      batches: the examples that curvature is taken over.
      test: batches of the full test split.
      key: PRNG key of probes and start vectors.
      probes: random vectors of traces; samples of the average sharpness.
      eigenpairs: how many, at most the live dimension.
      radius: of the ball of `sharpness`, in units of the weights.
      activations: `trained -> {layer: normalized activations}` of this network or of the
        untrained one, for `normality`.
      outputs: `(params, batch) -> [examples, classes]` logits.
      initial: gives the run's initial parameters, without masks.
      kernels: paths of the kernels of prunable layers.
      live_loss, live_per_example: `loss` and `per_example` by fewer operations, where `masks` hold:
        of a network without its dead units (a function of all parameters none the less).
      network: see `Network`.
      loss_of: `(outputs, targets) -> [examples]` of the loss; None: cross entropy.
      options: the fields of `config.measures`, for what only one measure asks; a measure that is
        not of the package declares its own (`prunejax.configs.fields.declare`).
    """

    loss: Callable[[Tree, Tree], jax.Array]
    per_example: Callable[[Tree, Tree], jax.Array] | None
    evaluate: Callable[[Tree, Tree], Mapping[str, jax.Array]]
    params: Tree
    masks: Tree
    batches: list[Tree]
    test: list[Tree]
    key: jax.Array
    probes: int = 64
    eigenpairs: int = 10
    radius: float = 0.05
    activations: Callable[[bool], Mapping[str, Any]] | None = None
    outputs: Callable[[Tree, Tree], jax.Array] | None = None
    initial: Callable[[], Tree] | None = None
    kernels: Sequence[str] | None = None
    live_loss: Callable[[Tree, Tree], jax.Array] | None = None
    live_per_example: Callable[[Tree, Tree], jax.Array] | None = None
    network: Callable[[], Network] | None = None
    loss_of: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @once
    def curve(self) -> Curve:
        """Loss and accuracy against the share of weights kept, largest magnitudes first."""
        return prune_curve(self.evaluate, self.params, self.batches, masks=self.masks)

    @property
    def predict(self) -> Callable[[Tree, Tree], jax.Array] | None:
        """`(params, batch) -> [examples]`: the class that each example is given."""
        outputs = self.outputs
        return outputs and (lambda params, batch: losses.predicted(outputs(params, batch)))

    @once
    def live_dim(self) -> int:
        """Coordinates that are live."""
        return vectors.live_dimension(vectors.expand_masks(self.masks, self.params), self.params)

    @once
    def examples(self) -> int:
        """Examples that curvature is taken over."""
        return sum(map(splits.batch_size, self.batches))

    @once
    def hessian(self) -> Hessian:
        """The Hessian of the mean loss on the live subspace."""
        loss = self.live_loss or self.loss
        return Hessian(loss, self.params, self.batches, masks=self.masks)

    @once
    def forms(self) -> np.ndarray:
        """[examples, probes] quadratic forms v'H_i v with every example's own Hessian."""
        assert self.per_example is not None
        source = (vectors.named_key(self.key, "probe"), jnp.arange(self.probes))
        return forms_by_example(
            self.live_per_example or self.per_example, self.params, self.batches, source,
            distribution="rademacher", masks=self.masks,
        )  # fmt: skip

    @once
    def trace_samples(self) -> np.ndarray:
        """[probes] quadratic forms v'Hv."""
        if self.per_example is not None:  # costs no more, and `tic` needs them
            return self.forms.mean(0)
        return estimate_trace(self.hessian, key=self.key, probes=self.probes).samples

    @once
    def moment(self) -> GradientMoment:
        """The uncentered second moment of per-example gradients."""
        assert self.per_example is not None
        return gradient_second_moment(self.per_example, self.params, self.batches, masks=self.masks)

    @once
    def pairs(self) -> Eigenpairs:
        """Eigenpairs of largest magnitude, in descending order of the signed eigenvalue."""
        count = min(self.eigenpairs, self.live_dim)
        # The largest lie apart from the bulk: in a basis of these few vectors, which stays in a
        # cache, they took as many products as in one that is never full. Asked for in bytes: a
        # basis of a given size would have no bound.
        few = (2 * count + 12) * row_bytes(self.hessian)
        found = eigenpairs(
            self.hessian, count, key=self.key, which="magnitude", tolerance=TOLERANCE,
            memory_bytes=min(few, MEMORY),
        )  # fmt: skip
        # as released: the leading ten are the most positive
        return found.at(np.argsort(-found.values, kind="stable"))
