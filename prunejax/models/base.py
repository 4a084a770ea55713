"""What all models share: options, layer helpers, scaling of widths."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prunejax.groups import Link, chain
from prunejax.groups import kept as kept_units
from prunejax.ops import layers
from prunejax.ops.conv import Method


class Model(nn.Module):
    """Base of the models: the options that each of them has.

    All parameters live one level deep, `<layer>/<leaf>`: "conv1/kernel", "bn1/scale",
    "stage1_block2_conv1/kernel", "classifier/bias". `apply` takes [batch, height, width,
    channels] and returns logits [batch, num_classes] in float32.

    Attributes:
      num_classes: width of the output.
      width: factor on the number of units of every hidden layer (rounded, at least 1).
      dropout: probability of dropping a unit in training; each model says where.
      dtype: of the computation; parameters, BatchNorm statistics and logits stay float32.
      conv_method: "auto" or "lax", see `prunejax.ops.conv.conv`.
      unbiased_variance: BatchNorm keeps PyTorch's running variance, n/(n-1) of the biased one.
      folded: BatchNorm is in the kernels and biases (`prunejax.shrink`); for evaluation.
    """

    num_classes: int = 10
    width: float = 1.0
    dropout: float = 0.0
    dtype: Any = jnp.float32
    conv_method: Method = "auto"
    unbiased_variance: bool = False
    folded: bool = False

    def prunable(self) -> tuple[str | tuple[str, ...], ...]:
        """The prunable layers in forward order.

        An entry is the name of a layer ("conv1", whose BatchNorm is "bn1" if there is one), or
        (layer, norm), e.g. ("fc1", "bn1") or ("fc1", "") for none, or (layer, norm, path of the
        bias). A unit without its kernel column, norm and bias must be exactly 0 where it is read;
        a study checks that before it trains a model that is not of this package.
        """
        raise ValueError(
            f"{type(self).__name__} does not say which layers can be pruned: give it a method "
            "`prunable`, e.g. of ('conv1', ('fc1', 'norm1')), or of ()"
        )

    def wiring(self) -> tuple[Link, ...]:
        """Who reads whom, layer by layer in forward order; () where a model does not say.

        A stream that holds a prunable unit after a gate is called like the gate. It tells groups
        their readers, a study the effective sparsity, and `prunejax.shrink` what to cut.
        """
        return ()

    def shrunk(self, gone: Mapping[str, np.ndarray]) -> tuple["Model", dict[str, np.ndarray]]:
        """The model without units that are gone, as far as its layers can do without.

        Args:
          gone: stream -> bool per unit, True where it may go.

        Returns:
          The smaller model, and stream -> indices of the units that it keeps; a stream that is
          not named is whole.
        """
        raise ValueError(
            f"{type(self).__name__} has no method `shrunk` of its own; write one, or give groups "
            "that name their readers, and rebuild"
        )

    def scaled(self, units: int) -> int:
        """`units` times the width factor."""
        return max(1, round(units * self.width))  # halves to the even number

    def conv(self, x: jax.Array, features: int, kernel: int, **options: Any) -> jax.Array:
        """A convolution with this model's dtype and method; see `layers.convolution`."""
        options = {"dtype": self.dtype, "method": self.conv_method, **options}
        return layers.convolution(features, kernel, **options)(x)

    def norm(self, x: jax.Array, train: bool, name: str) -> jax.Array:
        """A BatchNorm with this model's dtype and kind of running variance; none once folded."""
        if self.folded:
            return x
        return layers.batch_norm(train, self.dtype, name, self.unbiased_variance)(x)

    def drop(self, x: jax.Array, train: bool) -> jax.Array:
        """Dropout with rng stream "dropout"; nothing where the rate is 0."""
        # No stream of draws is asked for then.
        if self.dropout == 0.0:
            return x
        return nn.Dropout(self.dropout, deterministic=not train)(x)

    def logits(
        self, x: jax.Array, kernel_init: layers.Initializer = layers.torch_default
    ) -> jax.Array:
        """The linear classifier on [batch, features]; float32."""
        out = layers.classifier(
            self.num_classes, x.shape[-1], kernel_init=kernel_init, name="classifier",
            dtype=self.dtype,
        )(x)  # fmt: skip
        # Losses are in single precision at least, whatever the layers compute in.
        return out.astype(jnp.promote_types(out.dtype, jnp.float32))


class Chain(Model):
    """Base of models whose layers each read the one before: convolutions, then dense layers.

    A subclass has `features` (output channels of "conv1", "conv2", ..., and "M" for pooling),
    `hidden` (units of "dense1", "dense2", ...), or both. With `batch_norm` true, "bn1", "bn2", ...
    follow them.
    """

    def _sizes(self) -> dict[str, tuple[int | str, ...]]:
        return {name: getattr(self, name, ()) for name in ("features", "hidden")}

    def prunable(self) -> tuple[str, ...]:
        """conv1, conv2, ..., dense1, dense2, ...: all but the classifier."""
        sizes = self._sizes()
        convolutions = sum(entry != "M" for entry in sizes["features"])
        return (
            *(f"conv{i}" for i in range(1, convolutions + 1)),
            *(f"dense{i}" for i in range(1, len(sizes["hidden"]) + 1)),
        )

    def wiring(self) -> tuple[Link, ...]:
        """A chain; a dense layer reads a channel at each position of the map before it.

        Only a dense layer leaves its bias to the BatchNorm behind it.
        """
        norm = bool(getattr(self, "batch_norm", False)) and not self.folded
        return chain(self.prunable(), norm=norm, bias=not norm or bool(self._sizes()["features"]))

    def shrunk(self, gone: Mapping[str, np.ndarray]) -> tuple["Model", dict[str, np.ndarray]]:
        """As `Model.shrunk`."""
        kept = {name: kept_units(gone[name]) for name in self.prunable()}
        sizes = iter([units.size for units in kept.values()])
        found: dict[str, Any] = {
            name: tuple(e if e == "M" else next(sizes) for e in entries)
            for name, entries in self._sizes().items()
            if entries
        }
        return self.clone(**found, width=1.0), kept
