"""Our NumPy reimplementation of the paper's pruning and noise of one layer, from a description.

Not the released code: that runs beside prunejax in `benchmarks/released.py`.

Independent of prunejax on purpose: loops over filters, counts, and no windows. Filters are the
first axis here, as in PyTorch; `kernel` gives them in the order of a JAX kernel.
"""

from math import ceil

import numpy as np
from scipy.stats import norm


def event_epochs(start, end, period):
    """Epochs start, start + period, ... up to and including `end`."""
    return [epoch for epoch in range(end + 1) if epoch >= start and (epoch - start) % period == 0]


def removals(filters, fraction, events):
    """k_i of each event: kept after event i is ceil(K + (N - K)(n - i) / n), K = ceil((1-f)N)."""
    final = ceil((1 - fraction) * filters)
    pruned, counts = 0, []
    for i in range(1, events + 1):
        kept = ceil(final + (filters - final) * (events - i) / events)
        counts.append(max(filters - kept - pruned, 0))
        pruned += counts[-1]
    return counts


def expected_activation(scale, shift, alternative=False):
    """E[BN] by its formula: the mean of a normal variable after a ReLU."""
    s = scale if alternative else abs(scale)
    if s == 0:
        return max(shift, 0.0)  # (not defined by the release where the shift is not zero)
    alpha = -shift / s
    above = 1 - norm.cdf(alpha)
    return 0.0 if above == 0 else above * (shift + s * norm.pdf(alpha) / above)


class Layer:
    """A convolution with the BatchNorm after it, as the release prunes or noises them.

    kind: "prune" (mask on filter, scale and shift), "reference" (figure 5's Prune_L: mask on the
    filter alone), "zeroing", "gaussian". `passes` is the number in the run table's name.
    """

    def __init__(self, weight, bn, kind, passes=0, newest=True, restore=False, rng=None):
        self.w = np.array(weight, np.float64)  # [filters, ...]
        self.bn = {name: np.array(x, np.float64) for name, x in bn.items()}
        self.kind, self.passes, self.newest, self.restore = kind, passes, newest, restore
        self.kept = [True] * len(self.w)  # the mask; in noise runs, who was never targeted
        self.fresh = []  # targets of the newest event
        self.since = 10**7  # passes since the newest event
        self.rng = rng
        self.touched = []  # per pass: the filters it changed

    def scores(self, score):
        """One number per filter."""
        flat = self.w.reshape(len(self.w), -1)
        if score == "l1":
            return np.abs(flat).sum(1)
        if score == "l2":
            return np.sqrt((flat**2).sum(1))
        pairs = zip(self.bn["scale"], self.bn["bias"], strict=True)
        return np.array([expected_activation(*pair, score == "ebn_alt") for pair in pairs])

    def event(self, k, largest, score):
        """Targets k surviving filters; returns their indices."""
        alive = [i for i, kept in enumerate(self.kept) if kept]
        values = self.scores(score)[alive]
        ranked = sorted(values, reverse=largest)
        cutoff = ranked[k - 1]
        reach = [i for i, v in zip(alive, values, strict=True)
                 if (v >= cutoff if largest else v <= cutoff)]  # fmt: skip
        chosen = reach[:k]  # more than k reach the cutoff where scores are equal
        for i in chosen:
            self.kept[i] = False
        if self.kind in ("zeroing", "gaussian"):
            self.fresh, self.since = chosen, 0
        elif self.kind == "prune":
            self.w[chosen] = 0
        return chosen

    def forward(self):
        """What a forward pass does to the stored values; returns what it computes with."""
        self.touched.append([])
        if self.kind in ("zeroing", "gaussian") and self.since <= self.passes:
            self.since += 1
            every = [i for i, kept in enumerate(self.kept) if not kept]
            targets = self.fresh if self.newest else every
            self.touched[-1] = targets
            if self.since == 1:
                self.saved = {i: (self.w[i].copy(), {n: x[i] for n, x in self.bn.items()})
                              for i in targets}  # fmt: skip
            for i in targets:
                if self.kind == "gaussian":
                    self.w[i] += self.sigma() * self.rng.normal(size=self.w[i].shape)
                else:
                    self.w[i] = 0
                    if self.restore:
                        self.bn["scale"][i] = self.bn["bias"][i] = 0
            if self.restore and self.since > self.passes:
                for i, (w, bn) in self.saved.items():
                    self.w[i] = w
                    for name, value in bn.items():
                        self.bn[name][i] = value
                self.touched[-1] = []
        masked = {"prune", "reference"} & {self.kind}
        gate = np.array([kept or not masked for kept in self.kept], float)
        both = gate if self.kind == "prune" else np.ones_like(gate)
        w = self.w * gate.reshape(-1, *[1] * (self.w.ndim - 1))
        return w, self.bn["scale"] * both, self.bn["bias"] * both

    def sigma(self):
        """Standard deviation (ddof 1) of the first filter that was never targeted."""
        return np.std(self.w[self.kept.index(True)], ddof=1)

    def kernel(self):
        """The weights with filters last."""
        return np.moveaxis(self.w, 0, -1)


def training_passes(passes, steps, test_batches, epochs=30):
    """Of `passes` forward passes after an event, how many are training steps.

    An event is followed by a test; every further epoch trains, tests before pruning, and tests
    after it.
    """
    order = ["test"] * test_batches
    for _ in range(epochs):
        order += ["train"] * steps + ["test"] * 2 * test_batches
    return order[:passes].count("train")


class Network:
    """dense layer, BatchNorm, ReLU, linear classifier; trained as the release trains."""

    def __init__(self, layer, classifier, rate, momentum=0.9, decay=0.0):
        self.layer = layer  # w: [units, inputs]
        self.c = {name: np.array(x, np.float64) for name, x in classifier.items()}
        self.rate, self.momentum, self.decay = rate, momentum, decay
        self.moments = {}

    def outputs(self, x, train):
        """Logits, and what the backward pass needs; running statistics move in training."""
        w, scale, bias = self.layer.forward()
        a = x @ w.T
        bn = self.layer.bn
        if train:
            mean, var = a.mean(0), a.var(0)
            bn["mean"] = 0.9 * bn["mean"] + 0.1 * mean
            bn["var"] = 0.9 * bn["var"] + 0.1 * var  # biased, as everywhere here
        else:
            mean, var = bn["mean"], bn["var"]
        z = (a - mean) / np.sqrt(var + 1e-5)
        y = z * scale + bias
        h = np.maximum(y, 0)
        return h @ self.c["kernel"] + self.c["bias"], (x, w, scale, var, z, y, h)

    @staticmethod
    def loss(logits, labels):
        """Per-example cross-entropy in nats, and the probabilities."""
        shifted = logits - logits.max(1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        return -log_p[np.arange(len(labels)), labels], np.exp(log_p)

    def train_step(self, x, labels):
        """Forward, backward, SGD with momentum and L2; returns the mean loss."""
        logits, (x, _, scale, var, z, y, h) = self.outputs(x, train=True)
        losses, p = self.loss(logits, labels)
        g = p.copy()
        g[np.arange(len(labels)), labels] -= 1
        g /= len(labels)
        d_h = g @ self.c["kernel"].T
        d_y = d_h * (y > 0)
        d_z = d_y * scale
        d_a = (d_z - d_z.mean(0) - z * (d_z * z).mean(0)) / np.sqrt(var + 1e-5)
        kept = np.array([k or self.layer.kind in ("zeroing", "gaussian") for k in self.layer.kept])
        both = kept | (self.layer.kind == "reference")
        for name, holder, key, gradient in (
            ("w", self.layer.__dict__, "w", (d_a.T @ x) * kept[:, None]),
            ("scale", self.layer.bn, "scale", (d_y * z).sum(0) * both),
            ("bias", self.layer.bn, "bias", d_y.sum(0) * both),
            ("kernel", self.c, "kernel", h.T @ g),
            ("c_bias", self.c, "bias", g.sum(0)),
        ):
            gradient = gradient + self.decay * holder[key]
            v = self.momentum * self.moments.get(name, 0.0) + gradient
            self.moments[name] = v
            holder[key] = holder[key] - self.rate * v
        return losses.mean()


def window_steps(passes, steps_per_epoch, test_batches):
    """Training steps in a window of `passes` forward passes counted as the released code does.

    The window opens with the evaluation after the event; every later epoch adds its training
    batches and two passes over the test set (before and after pruning).
    E.g. 1500 passes, 391 steps and 79 test batches: 1105 steps.
    """
    left, steps = passes - test_batches, 0
    while left > 0:
        now = min(left, steps_per_epoch)
        steps += now
        left -= now + 2 * test_batches
    return steps
