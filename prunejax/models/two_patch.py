"""The two-layer network whose random pruning at initialization can be analysed.

Yang, Liang, Guo, Wu & Wang, "Pruning before training may improve generalization, provably",
JMLR 26(84), 2025.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from prunejax.models.base import Model
from prunejax.ops import layers


class TwoPatch(Model):
    """F_j(x) = sum over the neurons r of class j and the patches of act(<w_jr, patch>).

    The only parameters are the first layer's, "neurons/kernel" [inputs, classes * neurons], the
    neurons of class 0 first; output weights are fixed to 1, there are no biases. Examples [batch,
    patches, inputs] have patches; all others are flattened to one.

    Attributes:
      neurons: of each class (times `width`).
      init_std: sigma_0 of the normal initial weights.
      power: q of the activation ReLU^q: 1, 2 or 3.
    """

    neurons: int = 10
    init_std: float = 0.1
    power: int = 1

    def prunable(self) -> tuple[str, ...]:
        """Neurons."""
        return ("neurons",)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits [batch, classes], float32."""
        if self.power not in (1, 2, 3):
            raise ValueError(f"power is {self.power!r}; ReLU to the power of 1, 2 or 3")
        x = jnp.asarray(x, self.dtype)
        if x.ndim != 3:
            x = x.reshape(x.shape[0], 1, -1)
        each = self.scaled(self.neurons)
        before = nn.Dense(
            self.num_classes * each,
            use_bias=False,
            # Not scaled by fan-in: sigma_0 is studied.
            kernel_init=nn.initializers.normal(self.init_std),
            dtype=self.dtype,
            name="neurons",
        )(x)
        layers.record_activation(self, "neurons", before)
        # Powers as products: the gradient of x ** q at 0 is NaN for traced q, and exact here.
        active = nn.relu(before)
        answer = active
        for _ in range(self.power - 1):
            answer = answer * active
        answer = self.drop(answer, train)
        out = answer.reshape(*answer.shape[:2], self.num_classes, each).sum(axis=(1, 3))
        return out.astype(jnp.promote_types(out.dtype, jnp.float32))
