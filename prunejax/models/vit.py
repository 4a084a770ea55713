"""Vision Transformer (Dosovitskiy et al. 2021): ViT-S/16."""

from collections.abc import Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prunejax.groups import INPUT, OUTPUT, Link
from prunejax.groups import kept as kept_units
from prunejax.models.base import Model
from prunejax.ops import layers

# As in DeiT (Touvron et al. 2021), biases zero.
truncated = nn.initializers.truncated_normal(0.02)


def attended(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k' / sqrt(units)) v of every head: [batch, tokens, heads, units] each, and so out.

    The softmax is divided by its sum after the product with the values: so its derivatives have
    fewer passes over tokens x tokens numbers than those of `jax.nn.dot_product_attention`. Scores,
    sums and products are float32 at least, whatever the inputs are.
    """
    accumulated = jnp.promote_types(q.dtype, jnp.float32)
    product = partial(jnp.einsum, preferred_element_type=accumulated)
    # In half precision queries that were scaled before the product would be rounded once more.
    scores = product("bqhu,bkhu->bhqk", q, k) * q.shape[-1] ** -0.5
    # The largest score keeps exp finite; it cancels in the quotient, so it has no derivative.
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    values = product("bhqk,bkhu->bqhu", weights.astype(v.dtype), v)
    return (values / jnp.moveaxis(jnp.sum(weights, axis=-1), 1, 2)[..., None]).astype(v.dtype)


class Tokens(nn.Module):
    """Puts the class token before the patches and adds the learned position embeddings."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, patches, units] -> [batch, 1 + patches, units]."""
        batch, patches, units = x.shape
        token = self.param("class", truncated, (1, 1, units))
        positions = self.param("positions", truncated, (1, 1 + patches, units))
        first = jnp.broadcast_to(token, (batch, 1, units)).astype(x.dtype)
        return jnp.concatenate([first, x], axis=1) + positions.astype(x.dtype)


class ViT(Model):
    """Patches, class token and positions, pre-LayerNorm blocks, LayerNorm, a linear classifier.

    A block adds attention(LayerNorm(x)) and then MLP(LayerNorm(x)) with exact GELU; the class
    token is classified. LayerNorm has epsilon 1e-6 and computes in float32. Dropout is after the
    embedding, after attention, and after both layers of the MLP.

    Prunable are the hidden units of each block's MLP, "block1_dense1": without column and bias a
    unit is GELU(0) = 0. Attention heads are not: a head is a slice of four kernels, and a group
    masks single columns of one. There is no BatchNorm, so that scores which read one (`ebn`, `bn`)
    are refused.

    The width factor scales the units of a head and of the MLP; the number of heads stays.

    Attributes:
      depth: number of blocks.
      heads: attention heads of each block.
      head_units: units of a head; the width of the network is heads * head_units.
      mlp_units: hidden units of the MLP.
      patch: side of the square patches in pixels; must divide height and width of the images.
      cut: of a shrunken network, (heads, hidden units of the MLP) of each block.
    """

    depth: int = 12
    heads: int = 6
    head_units: int = 64
    mlp_units: int = 1536
    patch: int = 16
    cut: tuple[tuple[int, int], ...] = ()

    def _sizes(self, block: int) -> tuple[int, int]:
        """Heads and hidden units of the MLP of a block, counted from 1."""
        return self.cut[block - 1] if self.cut else (self.heads, self.scaled(self.mlp_units))

    def prunable(self) -> tuple[str, ...]:
        """block1_dense1, block2_dense1, ..."""
        return tuple(f"block{b}_dense1" for b in range(1, self.depth + 1))

    def wiring(self) -> tuple[Link, ...]:
        """Every addition to the tokens makes a stream of its own; LayerNorm mixes all units.

        Queries and keys act as products, unit by unit, on all values of their head.
        """

        def dense(source: str, target: str, name: str, part: int | None = None) -> Link:
            units = heads * self.scaled(self.head_units)
            columns = None if part is None else (part * units, (part + 1) * units)
            return Link(source, target, f"{name}/kernel", (), (f"{name}/bias",), columns)

        def norm(source: str, target: str) -> Link:
            return Link(source, target, "", (f"{target}/scale",), (f"{target}/bias",), blocks=1)

        added = ("patches/bias", "tokens/class", "tokens/positions")
        links, x = [Link(INPUT, "tokens", "patches/kernel", (), added)], "tokens"
        for b in range(1, self.depth + 1):
            block, heads = f"block{b}", self._sizes(b)[0]
            q, k, v, attended, y, z = (
                f"{block}_{n}" for n in ("query", "key", "value", "attended", "tokens1", "tokens2")
            )
            normed, into = f"{block}_norm1", f"{block}_attention_in"
            links += [
                norm(x, normed),
                *(dense(normed, t, into, i) for i, t in enumerate((q, k, v))),
            ]
            links += [
                Link(v, attended),
                Link(q, attended, blocks=heads, times=k),
                Link(k, attended, blocks=heads, times=q),
                Link(x, y),
                dense(attended, y, f"{block}_attention_out"),
                norm(y, f"{block}_norm2"),
                dense(f"{block}_norm2", f"{block}_dense1", f"{block}_dense1"),
                Link(y, z),
                dense(f"{block}_dense1", z, f"{block}_dense2"),
            ]
            x = z
        return (*links, norm(x, "norm"), dense("norm", OUTPUT, "classifier"))

    def shrunk(self, gone: Mapping[str, np.ndarray]) -> tuple["ViT", dict[str, np.ndarray]]:
        """As `Model.shrunk`: hidden units of MLPs, and heads whose values are all gone."""
        kept, cut = dict[str, np.ndarray](), list[tuple[int, int]]()
        for b in range(1, self.depth + 1):
            hidden = kept_units(gone[f"block{b}_dense1"])
            by_head = gone[f"block{b}_attended"].reshape(self._sizes(b)[0], -1)
            heads = kept_units(np.all(by_head, axis=1))
            size = by_head.shape[1]
            units = (heads[:, None] * size + np.arange(size)).reshape(-1)
            names = ("query", "key", "value", "attended")
            kept |= {f"block{b}_dense1": hidden} | {f"block{b}_{n}": units for n in names}
            cut.append((heads.size, hidden.size))
        return self.clone(cut=tuple(cut)), kept

    def _dense(self, x: jax.Array, features: int, name: str) -> jax.Array:
        return nn.Dense(features, kernel_init=truncated, dtype=self.dtype, name=name)(x)

    def _norm(self, x: jax.Array, name: str) -> jax.Array:
        return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=name)(x)

    def _embedded(self, x: jax.Array) -> jax.Array:
        """Images as tokens [batch, 1 + patches, units]."""
        height, width = x.shape[1:3]
        if height % self.patch or width % self.patch or not height * width:
            raise ValueError(
                f"images of {height}x{width} pixels do not divide into patches of {self.patch}; "
                f"use a size that is a multiple of {self.patch} (streamed: config.data.image_size)"
            )
        x = self.conv(
            x, self.heads * self.scaled(self.head_units), self.patch, stride=self.patch, padding=0,
            kernel_init=layers.torch_default, name="patches",
        )  # fmt: skip
        return Tokens(name="tokens")(x.reshape(x.shape[0], -1, x.shape[-1]))

    def _attention(self, x: jax.Array, block: str, heads: int) -> jax.Array:
        batch, tokens, units = x.shape
        inside = heads * self.scaled(self.head_units)
        x = self._dense(x, 3 * inside, f"{block}_attention_in")
        # Cut before heads are told apart: the derivative of the cut then copies whole rows.
        x = attended(*(part.reshape(batch, tokens, heads, -1) for part in jnp.split(x, 3, axis=-1)))
        return self._dense(x.reshape(batch, tokens, inside), units, f"{block}_attention_out")

    def _mlp(self, x: jax.Array, train: bool, block: str, hidden: int) -> jax.Array:
        units = x.shape[-1]
        x = self._dense(x, hidden, f"{block}_dense1")
        layers.record_activation(self, f"{block}_dense1", x)
        x = self.drop(nn.gelu(x, approximate=False), train)
        return self.drop(self._dense(x, units, f"{block}_dense2"), train)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels]."""
        x = self.drop(self._embedded(jnp.asarray(x, self.dtype)), train)
        for b in range(1, self.depth + 1):
            block, (heads, hidden) = f"block{b}", self._sizes(b)
            attended = self._attention(self._norm(x, f"{block}_norm1"), block, heads)
            x = x + self.drop(attended, train)
            x = x + self._mlp(self._norm(x, f"{block}_norm2"), train, block, hidden)
        return self.logits(self._norm(x, "norm")[:, 0], truncated)
