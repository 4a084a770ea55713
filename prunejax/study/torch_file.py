"""Networks of this package as a PyTorch state dict, written without PyTorch.

    torch.load("net.pt", weights_only=True)     # name -> tensor, for Module.load_state_dict

Names are ours with PyTorch's endings: "conv1/kernel" is "conv1.weight", "bn1/scale" "bn1.weight",
"bn1/mean" "bn1.running_mean". Convolution kernels become [out, in, height, width], dense ones
[out, in]; a dense layer behind a flattened map reads it as PyTorch flattens, channel by channel.
Residual channels that are shut beyond the addition cannot be said by weights: "gates.NAME", bool
per channel, is there where any is.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prunejax import trees
from prunejax.groups import INPUT, Link

_ENDINGS = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_STORAGES = {"float32": "FloatStorage", "int64": "LongStorage", "bool": "BoolStorage"}


def state_dict(variables: Mapping[str, Any], links: Sequence[Link] = ()) -> dict[str, np.ndarray]:
    """Arrays in PyTorch's layouts by PyTorch's names.

    Args:
      variables: "params", and "batch_stats" and "gates" where there are.
      links: the model's wiring, which says what a dense layer reads.
    """
    params = {path: np.asarray(x) for path, x in trees.leaves_with_paths(variables["params"])}
    stats = {
        path: np.asarray(x) for path, x in trees.leaves_with_paths(variables.get("batch_stats", {}))
    }
    widths = {}  # of what each kernel reads
    for link in links:
        if link.kernel and link.source != INPUT:
            before = [e.kernel for e in links if e.target == link.source and e.kernel]
            if before:
                widths[link.kernel] = params[before[0]].shape[-1]
    found = {}
    for path, leaf in (params | stats).items():
        layer, _, name = path.rpartition("/")
        place = f"{layer.replace('/', '.')}.{_ENDINGS.get(name, name)}"
        found[place] = _laid_out(leaf, widths.get(path, 0)) if name == "kernel" else leaf
        if name == "mean":
            # PyTorch's BatchNorm has this counter, and a strict load asks for it.
            found[f"{layer.replace('/', '.')}.num_batches_tracked"] = np.zeros((), np.int64)
    for name, gate in variables.get("gates", {}).items():
        if not np.all(gate):
            found[f"gates.{name}"] = np.asarray(gate, bool)
    return found


def _laid_out(kernel: np.ndarray, width: int) -> np.ndarray:
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1)
    rows, out = kernel.shape
    if width and rows > width:  # [positions, channels] of a map: PyTorch has channels first
        kernel = kernel.reshape(rows // width, width, out).transpose(1, 0, 2).reshape(rows, out)
    return kernel.T


def dump(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The file that `torch.save` writes of a dict of tensors: a ZIP of a pickle and raw storages.
    Raises ValueError: an array of a type other than float32, int64 and bool.
    """
    pickle = bytearray(b"\x80\x02ccollections\nOrderedDict\n)R(")
    storages: list[bytes] = []
    for name, value in arrays.items():
        kind = _STORAGES.get(value.dtype.name)
        if kind is None:
            raise ValueError(f"{name}: no tensor of {value.dtype} in a .pt file")
        strides = np.cumprod([1, *value.shape[:0:-1]])[::-1][: value.ndim]
        pickle += _text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n((" + _text("storage")
        pickle += b"ctorch\n" + kind.encode() + b"\n" + _text(str(len(storages))) + _text("cpu")
        pickle += _whole(value.size) + b"tQ" + _whole(0)
        pickle += b"(" + b"".join(map(_whole, value.shape)) + b"t"
        pickle += b"(" + b"".join(map(_whole, strides)) + b"t"
        pickle += b"\x89ccollections\nOrderedDict\n)RtR"
        storages.append(np.ascontiguousarray(value).tobytes())
    pickle += b"u."
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("net/data.pkl", bytes(pickle))
        archive.writestr("net/byteorder", "little")
        for number, content in enumerate(storages):
            archive.writestr(f"net/data/{number}", content)
        archive.writestr("net/version", "3\n")
    return file.getvalue()


def _text(text: str) -> bytes:
    content = text.encode()
    return b"X" + len(content).to_bytes(4, "little") + content


def _whole(number: int) -> bytes:
    return b"J" + int(number).to_bytes(4, "little", signed=True)
