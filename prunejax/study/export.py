"""A network that a study trained, as a file for other programs: masked, or without dead units.

- `.npz`: arrays by path: "weights/...", "statistics/...", "gates/..." (of residual channels),
  "masks/..." (bool, True = live), and "metadata", a JSON text.
- `.safetensors`: the same arrays and metadata (https://github.com/huggingface/safetensors, format
  of 2022: eight bytes with the length of a JSON header, the header, the arrays end to end).
- `.pt`: a PyTorch state dict, see `prunejax.study.torch_file`.
- `.stablehlo`: `x -> outputs` in evaluation mode, weights inside, for any number of examples and
  for CPUs, GPUs and TPUs, as `jax.export` writes it; its `deserialize` reads it.
"""

import dataclasses
import errno
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

import prunejax
from prunejax import groups, masks, shrink, trees
from prunejax.errors import ConfigError, RecordError
from prunejax.groups import Link
from prunejax.study import torch_file
from prunejax.study.loaded import Loaded, load
from prunejax.system import files, optional

FORMATS = (".npz", ".safetensors", ".pt", ".stablehlo")
PLATFORMS = ("cpu", "cuda", "tpu")
_TYPES = {
    **{"bool": "BOOL", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64"},
    **{"uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64"},
    **{"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"},
}


def export(
    workdir: str | os.PathLike[str],
    run: str,
    output: str | os.PathLike[str],
    *,
    shrunk: bool = False,
    fold: bool = False,
) -> Path:
    """Writes the final network of a run; the ending of `output` says in which format.

    Args:
      workdir: of the study.
      run: "<variant>-<seed>".
      output: the file; written over if it is there.
      shrunk: without dead units (`prunejax.shrink`); what zeros are left are its masks.
      fold: BatchNorm in kernels and biases; of a shrunk network.

    Raises:
      ConfigError: another ending, no such run, one without a final state, or a package is missing.
      ValueError: the model cannot be shrunk.
      RecordError: the file cannot be written, or a program that was written does not give the
        network's outputs back.
    """
    path = files.target(output)
    if path.suffix not in FORMATS:
        raise ConfigError(f"--output={path}: the ending must be one of: {', '.join(FORMATS)}")
    if fold and not shrunk:
        raise ConfigError("--fold folds the BatchNorm of a shrunk network; give --shrink as well")
    study = load(workdir)
    network = Network.of(study, run, shrunk, fold)
    if path.suffix == ".stablehlo":
        content = stablehlo(network, study.program(run).image_shape)
    elif path.suffix == ".pt":
        content = torch_file.dump(torch_file.state_dict(network.variables, network.links()))
    elif path.suffix == ".safetensors":
        facts = metadata(study, run, network)
        content = safetensors(network.arrays(), {key: _text(value) for key, value in facts.items()})
    else:
        text = np.array(json.dumps(metadata(study, run, network)))
        found = network.arrays()
        files.replace(path, lambda file: np.savez(file, metadata=text, **found))  # type: ignore[arg-type]
        return path
    files.replace(path, lambda file: file.write(content))
    return path


@dataclasses.dataclass(frozen=True)
class Network:
    """A network as it leaves: module, variables on the host, and masks unless it was shrunk."""

    module: Any
    variables: dict[str, Any]
    masks: Any

    @classmethod
    def of(cls, study: Loaded, run: str, shrunk: bool = False, fold: bool = False) -> "Network":
        """The final network of a run."""
        if shrunk:
            module, variables = study.shrunk(run, fold)
            return cls(module, jax.tree.map(np.asarray, variables), None)
        variables = jax.tree.map(np.asarray, study.variables(run))
        return cls(study.model(run), variables, study.masks(run))

    def arrays(self) -> dict[str, np.ndarray]:
        """By part and path."""
        parts = {
            "weights": self.variables["params"],
            "statistics": self.variables.get("batch_stats", {}),
            "gates": self.variables.get("gates", {}),
            "masks": {} if self.masks is None else self.masks,
        }
        return {
            f"{part}/{path}": np.asarray(leaf)
            for part, tree in parts.items()
            for path, leaf in trees.leaves_with_paths(tree)
            if part != "masks" or np.ndim(leaf)
        }

    def links(self) -> tuple[Link, ...]:
        """The wiring, where the module states it."""
        return tuple(groups.wiring(self.module))


def metadata(study: Loaded, run: str, network: Network) -> dict[str, Any]:
    """What the arrays do not say: run, settings, model, how inputs are scaled, and the sparsity.

    That is the fraction removed of the weights of the layers that could be pruned.
    """
    dataset = study.dataset(run)
    variant = run.rpartition("-")[0]
    kernels = {g.kernel for g in study.program(run).groups}
    counts = masks.count(study.masks(run), study.weights(run))
    live, total = (sum(counts[path][i] for path in kernels) for i in (0, 1))
    return {
        "format": "prunejax",
        "version": prunejax.__version__,
        "study": study.config.get("name", ""),
        "run": run,
        "shrunk": network.masks is None,
        "model": {"class": type(network.module).__name__, **_attributes(network.module)},
        "sparsity": 1 - live / total if total else 0.0,
        "mean": [float(x) for x in np.ravel(dataset.mean)],
        "std": [float(x) for x in np.ravel(dataset.std)],
        "settings": study.settings[variant],
    }


def _attributes(module: Any) -> dict[str, Any]:
    """The fields of a Flax module, numbers and tuples as they are, everything else as text."""
    named = [f.name for f in dataclasses.fields(module) if f.name not in ("parent", "name")]
    found = {name: getattr(module, name) for name in named}
    plain = (bool, int, float, str, tuple, list, type(None))
    return {
        name: value if isinstance(value, plain) else getattr(value, "__name__", str(value))
        for name, value in found.items()
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def safetensors(found: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Arrays in the format of safetensors.

    Raises:
      ConfigError: an array of a type that the format does not have.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    parts, start = [], 0
    for name, value in found.items():
        if value.dtype.name not in _TYPES:
            raise ConfigError(f"{name}: safetensors has no type for {value.dtype}")
        little = value.astype(value.dtype.newbyteorder("<")) if value.dtype.kind in "iuf" else value
        parts.append(np.ascontiguousarray(little).tobytes())
        end = start + len(parts[-1])
        header[name] = {
            "dtype": _TYPES[value.dtype.name],
            "shape": list(value.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # arrays then begin at a multiple of their size
    return len(text).to_bytes(8, "little") + text + b"".join(parts)


def stablehlo(network: Network, shape: Sequence[int]) -> bytes:
    """A network as a portable program, read back and compared before it is returned.

    Args:
      network: in evaluation mode.
      shape: of one input.

    Raises:
      ConfigError: flatbuffers is missing, or the model wants batches of a size that is known.
      RecordError: it does not give the network's outputs back.
    """
    optional.check("a .stablehlo file", "flatbuffers")
    module, variables = network.module, jax.tree.map(jnp.asarray, network.variables)
    if hasattr(module, "conv_method"):  # convolutions as XLA's own, on every platform
        module = module.clone(conv_method="lax")

    def outputs(x: jax.Array) -> jax.Array:
        return module.apply(variables, x, train=False)

    (batch,) = jax_export.symbolic_shape("batch")
    like = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    try:
        jax.eval_shape(outputs, like)
    except Exception as error:  # of whatever its code does with a size that is no number
        raise ConfigError(
            f"a .stablehlo file takes batches of any size, and {type(module).__name__} does not "
            f"({' '.join(str(error).split())[:100]}); write x.shape[0] for len(x), or choose "
            "another kind of file"
        ) from error
    content = bytes(jax_export.export(jax.jit(outputs), platforms=PLATFORMS)(like).serialize())
    read = jax_export.deserialize(bytearray(content))
    x = jax.random.normal(jax.random.key(1), (8, *shape))
    expected = np.asarray(outputs(x))
    bound = shrink.TOLERANCE * np.max(np.abs(expected))  # of all: one alone may be near 0
    for n in (1, 8):
        if not np.allclose(read.call(x[:n]), expected[:n], rtol=0, atol=bound):
            raise RecordError(
                errno.EIO, "the exported program gives other outputs than the network"
            )
    return content
