"""The published measures of generalization on one network, as columns of a table.

    found = rivals.of_linen(module, variables, initial, train_batches, key=key)

The other functions are for any folded parameters. L2 norm, distances and PAC-Bayes bounds are
over the kernels, BatchNorm folded, biases left out, as in the code of Dziugaite et al. 2020; the
gains of a BatchNorm that reads a sum are a kernel, of a diagonal map (`folding`). There
every measure v is divided by the sample size m at last, sqrt(v / m) or (v - log m) / 2, with
squared norms in v: no matter for ranks within one m. Of a pruned network all of them, distances and
bounds too, are of the live weights: a masked weight is no parameter.
"""

import functools
from collections.abc import Sequence
from math import inf, log, nan
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import losses, trees
from prunejax import masks as masks_lib
from prunejax.curvature import splits
from prunejax.measures import folding, norms
from prunejax.measures.folding import Layer
from prunejax.measures.pac_bayes import pac_bayes_flatness

Tree = Any
EPSILON = 1e-3  # of the magnitude-aware noise
COLUMNS = (
    *("parameters", "l2_norm", "log_spectral_product", "log_spectral_product_reshaped"),
    *("frobenius_over_spectral", "log_frobenius_product", "kernel_distance_to_init"),
    *(
        "spectral_distance",
        "path_norm",
        "inverse_margin",
        "log_spectral_over_margin",
        "log_frobenius_over_margin",
    ),
    *("path_norm_over_margin", "pac_bayes_flatness", "pac_bayes_magnitude_flatness"),
    *("pac_bayes_init", "pac_bayes_magnitude_init"),
    *("pac_bayes_origin", "pac_bayes_magnitude_origin"),
)


def _kernels(params: Tree, layers: Sequence[Layer]) -> list[np.ndarray]:
    return [np.asarray(trees.get(params, layer.kernel), np.float64) for layer in layers]


def of_weights(
    params: Tree, layers: Sequence[Layer], initial: Tree | None = None
) -> dict[str, float]:
    """Norms of the kernels.

    Args:
      params: folded and masked.
      layers: from `folding.layers`.
      initial: folded parameters of the untrained network, masked alike; None leaves the distances
        out.

    Returns:
      parameters (entries of kernels that are not 0), l2_norm, log_spectral_product (exact for each
      layer's map), log_spectral_product_reshaped (of kernels as matrices [inputs, out], Yoshida
      and Miyato's approximation), frobenius_over_spectral, log_frobenius_product; and with an
      initial network kernel_distance_to_init, spectral_distance (root of summed squared spectral
      norms of the changes).
    """
    kernels = _kernels(params, layers)
    flat = [np.diag(k) if k.ndim == 1 else k.reshape(-1, k.shape[-1]) for k in kernels]
    with np.errstate(divide="ignore"):
        found = {
            "parameters": float(sum(np.count_nonzero(k) for k in kernels)),
            "l2_norm": float(np.sqrt(sum(np.sum(k**2) for k in kernels))),
            "log_spectral_product": norms.log_spectral_product(params, layers),
            "log_spectral_product_reshaped": float(sum(np.log(np.linalg.norm(k, 2)) for k in flat)),
            "frobenius_over_spectral": norms.frobenius_over_spectral(params, layers),
            "log_frobenius_product": float(sum(np.log(np.linalg.norm(k)) for k in flat)),
        }
    if initial is not None:
        moves = [a - b for a, b in zip(kernels, _kernels(initial, layers), strict=True)]
        tops = [
            norms.spectral_norm(m, x.map, x.strides) for m, x in zip(moves, layers, strict=True)
        ]
        found["kernel_distance_to_init"] = float(np.sqrt(sum(np.sum(m**2) for m in moves)))
        found["spectral_distance"] = float(np.sqrt(np.sum(np.square(tops))))
    return found


def over_margin(found: dict[str, float], inverse_margin: float) -> dict[str, float]:
    """Norms with the margin taken out: logs minus log(margin), the path norm divided by it."""
    shift = 0.5 * log(inverse_margin) if inverse_margin < inf else inf
    return {
        "inverse_margin": inverse_margin,
        "log_spectral_over_margin": found["log_spectral_product"] + shift,
        "log_frobenius_over_margin": found["log_frobenius_product"] + shift,
        "path_norm_over_margin": found["path_norm"] * inverse_margin**0.5,
    }


def pac_bayes_bounds(
    params: Tree,
    initial: Tree,
    layers: Sequence[Layer],
    *,
    sigma: float,
    magnitude_sigma: float,
    examples: int,
    epsilon: float = EPSILON,
    masks: Tree | None = None,
) -> dict[str, float]:
    """PAC-Bayes bounds around the init and the origin, up to constants (Jiang et al. 2020).

    |w - r|^2 / (4 sigma^2) + log(m / sigma) + 10 for r the init or 0; magnitude-aware with n
    weights: sum_i log((e^2 + (s^2 + 1) |w - r|^2 / n) / (e^2 + s^2 (w_i - w0_i)^2)) / 4
    + log(m / s) + 10. inf where no noise was borne (sigma 0).

    Of a pruned network w, r and n are of live weights: the bound is that of the smaller network,
    for a mask that is given beforehand. A masked weight is no random variable of either
    distribution (one fixed at 0 while the prior has a density would be infinitely far from it).
    What it costs to tell which weights are live, at most log C(weights, n), is left out.

    Args:
      params, initial: folded.
      layers: from `folding.layers`.
      sigma, magnitude_sigma: of the noise that is borne, see `pac_bayes_flatness`.
      examples: m.
      epsilon: e.
      masks: what is live, a tree like `params`; None: all.
    """
    live = masks if masks is not None else jax.tree.map(lambda _: True, params)
    of = _kernels(params, layers)
    marks = [np.broadcast_to(trees.get(live, x.kernel), k.shape)
             for x, k in zip(layers, of, strict=True)]  # fmt: skip
    w, start = (
        np.concatenate([k[mark] for k, mark in zip(kernels, marks, strict=True)])
        for kernels in (of, _kernels(initial, layers))
    )
    move = w - start
    found: dict[str, float] = {}
    for name, distance in (("init", move), ("origin", w)):
        square = float(distance @ distance)
        plain = aware = inf
        if sigma > 0:
            plain = square / (4 * sigma**2) + log(examples / sigma) + 10
        if magnitude_sigma > 0:
            s = magnitude_sigma**2
            top = epsilon**2 + (s + 1) * square / max(w.size, 1)
            # The init's moves in both bounds: that of the origin differs in the numerator alone.
            terms = np.log(top / (epsilon**2 + s * move**2))
            aware = float(terms.sum()) / 4 + log(examples / magnitude_sigma) + 10
        found |= {f"pac_bayes_{name}": plain, f"pac_bayes_magnitude_{name}": aware}
    return found


@functools.lru_cache(maxsize=16)
def _applied(module: Any) -> tuple[Any, Any]:
    """`(rest, params, x) -> logits`, compiled, and the same as an evaluation: one for a module."""

    def apply(rest: Tree, params: Tree, x: jax.Array) -> jax.Array:
        logits: jax.Array = module.apply({**rest, "params": params}, x)
        return logits

    def evaluate(rest: Tree, params: Tree, batch: Tree) -> dict[str, jax.Array]:
        right = losses.correct(apply(rest, params, batch[0]), batch[1])
        return {"accuracy": jnp.mean(right.astype(jnp.float32))}

    return jax.jit(apply), evaluate


def of_linen(
    module: Any,
    variables: Tree,
    initial: Tree,
    batches: splits.Batches,
    *,
    key: jax.Array,
    draws: int = 10,
    steps: int = 15,
) -> dict[str, float]:
    """All of them for a trained Linen module: `module.apply(variables, x)` gives logits.

    Networks of one module share what is compiled. Where targets are numbers (a regression), what is
    read from margins or accuracies is NaN; so is the path norm of a network that has no paths, with
    attention for instance.

    Args:
      module: in evaluation mode unless told otherwise.
      variables: trained and masked: "params", and "batch_stats" where it has them.
      initial: the untrained variables; they are masked as the trained ones are.
      batches: the training set, batches (x, labels, ...).
      key: of the noise, which goes to weights that are not 0.
      draws, steps: of `pac_bayes.pac_bayes_flatness`.
    """
    found = splits.batch_list(batches)
    shape = found[0][0].shape[1:]
    layers = folding.layers(module, variables, shape)
    # each by its own statistics
    trained, start = (folding.fold(v, layers) for v in (variables, initial))
    rest = {name: value for name, value in trained.items() if name != "params"}
    compiled, evaluate = _applied(module)
    single = getattr(module, "dtype", None) in (None, jnp.float32)
    # Sums over paths are no rounding of a network's.
    exact, _ = _applied(module if single else module.clone(dtype=jnp.float32))
    apply = functools.partial(compiled, rest)
    params = trained["params"]
    live = jax.tree.map(lambda mask, w: mask & (w != 0), folding.weights(params, layers), params)
    begun = masks_lib.apply(live, start["params"])
    columns = of_weights(params, layers, begun)
    numbers = {k: trained[k] for k in ("params", "batch_stats") if k in trained}  # and no gates
    whole = lambda v, x: exact({k: v.get(k, rest[k]) for k in rest}, v["params"], x)  # noqa: E731
    paths = folding.has_paths(module, variables, shape)
    columns["path_norm"] = norms.path_norm(whole, numbers, shape) if paths else nan
    labels = np.concatenate([np.asarray(batch[1]) for batch in found])
    if not np.issubdtype(labels.dtype, np.integer):
        return dict.fromkeys(COLUMNS, nan) | columns
    logits = np.concatenate([np.asarray(apply(params, batch[0])) for batch in found])
    columns |= over_margin(columns, norms.inverse_margin(logits, labels))

    options: dict[str, Any] = {"key": key, "draws": draws, "steps": steps, "masks": live}
    accuracy = jax.tree_util.Partial(evaluate, rest)
    # the same draws of noise in both forms
    plain = pac_bayes_flatness(accuracy, params, found, **options)
    aware = pac_bayes_flatness(accuracy, params, found, magnitude_epsilon=EPSILON, **options)
    columns |= {
        "pac_bayes_flatness": plain.value,
        "pac_bayes_magnitude_flatness": aware.value,
        **pac_bayes_bounds(
            params, begun, layers, sigma=plain.sigma, magnitude_sigma=aware.sigma,
            examples=labels.size, masks=live,
        ),
    }  # fmt: skip
    return columns
