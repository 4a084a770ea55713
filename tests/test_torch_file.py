"""Networks as PyTorch state dicts: read by PyTorch, and its outputs against ours."""

import io
import pickletools
import zipfile

import jax
import numpy as np
import pytest

from prunejax.study import torch_file
from tests.test_shrink import halved, inputs, masked, outputs
from tests.test_wiring import SMALL, drawn


def test_the_file_is_what_the_format_says():
    """Without PyTorch: the pickle is well formed, and each storage holds its array."""
    arrays = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "a.count": np.zeros((), np.int64),
        "gates.a": np.array([True, False]),
    }
    with zipfile.ZipFile(io.BytesIO(torch_file.dump(arrays))) as archive:
        ops = list(pickletools.genops(archive.read("net/data.pkl")))
        for number, value in enumerate(arrays.values()):
            stored = np.frombuffer(archive.read(f"net/data/{number}"), value.dtype)
            np.testing.assert_array_equal(stored.reshape(value.shape), value)
    assert ops[-1][0].name == "STOP"
    words = {arg for op, arg, _ in ops if op.name == "GLOBAL"}
    assert "torch FloatStorage" in words
    with pytest.raises(ValueError, match="a: no tensor of float64"):
        torch_file.dump({"a": np.zeros(2)})


@pytest.mark.parametrize("name", SMALL)
def test_every_leaf_has_a_place_of_its_own(name):
    module, _, variables = drawn(name)
    found = torch_file.state_dict(variables, module.wiring())
    leaves = jax.tree.leaves({k: v for k, v in variables.items() if k != "gates"})
    sizes = sorted(x.size for k, x in found.items() if not k.endswith("num_batches_tracked"))
    assert sizes == sorted(np.size(x) for x in leaves)


def loaded(variables, module):
    torch = pytest.importorskip("torch")
    content = torch_file.dump(torch_file.state_dict(variables, module.wiring()))
    return torch.load(io.BytesIO(content), weights_only=True)


def plain(name):
    """The small networks as PyTorch users write them: NCHW, maps flattened as they are."""
    from torch import nn

    class Conv(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
            self.dense1, self.classifier = nn.Linear(5 * 9, 6), nn.Linear(6, 3)

        def forward(self, x):
            x = nn.functional.max_pool2d(self.conv1(x).relu(), 2)
            return self.classifier(self.dense1(self.conv2(x).relu().flatten(1)).relu())

    class VGG(nn.Module):
        def __init__(self):
            super().__init__()
            for i, (before, after) in enumerate([(1, 4), (4, 5), (5, 3)], 1):
                setattr(self, f"conv{i}", nn.Conv2d(before, after, 3, padding=1))
                setattr(self, f"bn{i}", nn.BatchNorm2d(after))
            self.classifier = nn.Linear(3, 3)

        def forward(self, x):
            x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 2)
            x = self.bn3(self.conv3(self.bn2(self.conv2(x)).relu())).relu()
            return self.classifier(x.mean((2, 3)))

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            layers = [("stem_", 1, 4, 3), ("stage1_block1_", 4, 4, 3), ("stage2_block1_", 4, 6, 3)]
            for layer, before, after, k in layers:
                for i in ("",) if layer == "stem_" else (1, 2):
                    source, stride = (before, 1) if i != 2 else (after, 1)
                    stride = 2 if layer == "stage2_block1_" and i == 1 else stride
                    conv = nn.Conv2d(source, after, k, stride, padding=1, bias=False)
                    setattr(self, f"{layer}conv{i}", conv)
                    setattr(self, f"{layer}bn{i}", nn.BatchNorm2d(after))
            self.stage2_block1_shortcut_conv = nn.Conv2d(4, 6, 1, 2, bias=False)
            self.stage2_block1_shortcut_bn = nn.BatchNorm2d(6)
            self.classifier, self.gates = nn.Linear(6, 3), {}

        def of(self, x, layer):
            return getattr(self, layer.format("bn"))(getattr(self, layer.format("conv"))(x))

        def forward(self, x):
            x = self.of(x, "stem_{}").relu()
            for block in ("stage1_block1", "stage2_block1"):
                y = self.of(self.of(x, block + "_{}1").relu(), block + "_{}2")
                x = self.of(x, block + "_shortcut_{}") if block == "stage2_block1" else x
                x = (x + y) * self.gates.get(f"{block}_conv2", y.new_ones(y.shape[1]))[
                    :, None, None
                ]
                x = x.relu()
            return self.classifier(x.mean((2, 3)))

    return {"convnet": Conv, "vgg": VGG, "resnet_b": ResNet}[name]()


@pytest.mark.parametrize("name", ["convnet", "vgg", "resnet_b"])
def test_outputs_are_those_of_pytorch(name):
    torch = pytest.importorskip("torch")
    module, shape, variables = drawn(name)
    masks, gates, _ = halved(module, variables)
    variables = masked(variables, masks, gates)
    state = loaded(variables, module)
    network = plain(name).eval()
    if name == "resnet_b":
        network.gates = {k[6:]: state.pop(k) for k in list(state) if k.startswith("gates.")}
        assert network.gates
    network.load_state_dict(state)
    x = inputs(4, shape)
    with torch.no_grad():
        theirs = network(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    ours = outputs(module, variables, x)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5 * np.abs(ours).max())
