"""Vision Transformer (Dosovitskiy et al. 2021): ViT-S/16."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from prunejax.models.base import Model
from prunejax.ops import layers

# As in DeiT (Touvron et al. 2021), biases zero.
truncated = nn.initializers.truncated_normal(0.02)


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
    """

    depth: int = 12
    heads: int = 6
    head_units: int = 64
    mlp_units: int = 1536
    patch: int = 16

    def prunable(self) -> tuple[str, ...]:
        """block1_dense1, block2_dense1, ..."""
        return tuple(f"block{b}_dense1" for b in range(1, self.depth + 1))

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
            x,
            self.heads * self.scaled(self.head_units),
            self.patch,
            stride=self.patch,
            padding=0,
            kernel_init=layers.torch_default,
            name="patches",
        )
        return Tokens(name="tokens")(x.reshape(x.shape[0], -1, x.shape[-1]))

    def _attention(self, x: jax.Array, block: str) -> jax.Array:
        batch, tokens, units = x.shape
        x = self._dense(x, 3 * units, f"{block}_attention_in")
        q, k, v = jnp.moveaxis(x.reshape(batch, tokens, 3, self.heads, -1), 2, 0)
        x = jax.nn.dot_product_attention(q, k, v, implementation="xla")
        return self._dense(x.reshape(batch, tokens, units), units, f"{block}_attention_out")

    def _mlp(self, x: jax.Array, train: bool, block: str) -> jax.Array:
        units = x.shape[-1]
        x = self._dense(x, self.scaled(self.mlp_units), f"{block}_dense1")
        layers.record_activation(self, f"{block}_dense1", x)
        x = self.drop(nn.gelu(x, approximate=False), train)
        return self.drop(self._dense(x, units, f"{block}_dense2"), train)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels]."""
        x = self.drop(self._embedded(jnp.asarray(x, self.dtype)), train)
        for b in range(1, self.depth + 1):
            block = f"block{b}"
            attended = self._attention(self._norm(x, f"{block}_norm1"), block)
            x = x + self.drop(attended, train)
            x = x + self._mlp(self._norm(x, f"{block}_norm2"), train, block)
        return self.logits(self._norm(x, "norm")[:, 0], truncated)
