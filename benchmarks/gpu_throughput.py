"""Stage "throughput": training against PyTorch and the released loop; convolutions of many members.

Each network, dtype and number of members is one run of `training.py` (its checks, its clock), each
layer one run of `gpu_convolutions.py`. Every clock read spans at least half a second.
"""

import json
from typing import Any

from gpu_stage import Stage, last_line

# In order of what one would miss most.
RUNS = [
    *((m, "float32", n) for m in ("vgg11_bn",) for n in (1, 16, 4)),
    *((m, "bfloat16", n) for m in ("vgg11_bn",) for n in (1, 16, 4)),
    *((m, d, n) for m in ("resnet18", "mlp") for d in ("float32", "bfloat16") for n in (1, 16, 4)),
]
SMALLEST = [("mlp", "float32", 1), ("mlp", "float32", 4), ("mlp", "bfloat16", 4)]
# Seconds that are left, at least, when a program starts: it compiles first, and so does PyTorch's.
NEED = 120.0


def training(stage: Stage, model: str, dtype: str, members: int) -> None:
    """The rows of one run of `training.py`."""
    name = f"training-{model}-{dtype}-{members}"
    cells = {"network": model, "dtype": dtype, "of members": members}
    if stage.found(**cells):
        return
    batches = 16 if stage.cpu else 64
    size = [] if stage.cpu else ["--peak", "--peak-size=8192"]
    size = size or ["--peak", "--peak-size=256", "--rounds=2", "--batch=64"]
    command = stage.python(
        "training.py",
        *(f"--models={model}", f"--dtype={dtype}", f"--members={members}", "--released", *size),
        *(f"--batches={batches}", f"--steps={batches}", f"--seconds={0.02 if stage.cpu else 0.5}"),
        *(f"--torch-python={stage.options.torch_python}", f"--save={name}"),
        f"--folder={stage.out / 'throughput'}",
        *([] if stage.cpu else ["--rounds=4"]),
    )
    # PyTorch needs its part of the GPU's memory.
    code = stage.run(command, name, NEED, XLA_PYTHON_CLIENT_MEM_FRACTION="0.6")
    if code:
        said = last_line(stage.logs / f"{name}.log")
        stage.add(**cells, failed=f"{name}: exit code {code}: {said}")
        return
    file = max((stage.out / "throughput").glob(f"*-{name}.json"))
    for row in json.loads(file.read_text())["results"]:
        kept = ("contender", "members", "images/s", "ms a step", "of peak", "steps a clock read")
        more = {k: row[k] for k in (*kept, "first call, s", "first step") if k in row}
        stage.add(**cells, **more)


def over_released(stage: Stage) -> None:
    """Adds every row's images per second over those of the released loop."""
    loops = {(r["network"], r["dtype"]): r["images/s"] for r in stage.found(contender="released")}
    for row in stage.rows:
        loop = loops.get((row.get("network"), row.get("dtype")))
        if loop and "images/s" in row:
            row["x released"] = row["images/s"] / loop


def convolutions(stage: Stage, dtype: str, members: int) -> None:
    """Ways to convolve many members with kernels of their own, layer by layer of VGG11."""
    cells: dict[str, Any] = {"convolutions": dtype, "of members": members}
    if stage.found(**cells):
        return
    name = f"convolutions-{dtype}-{members}"
    options = ["--smallest"] if stage.cpu else []
    file = stage.out / "throughput" / f"{name}.jsonl"
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    command = stage.python("gpu_convolutions.py", dtype, members, file, *options)
    code = stage.run(command, name, NEED)
    for line in file.read_text().splitlines() if file.exists() else ():
        stage.add(**cells, **json.loads(line))
    if code:
        said = last_line(stage.logs / f"{name}.log")
        stage.add(**cells, failed=f"{name}: exit code {code}: {said}")


def body(stage: Stage) -> None:
    """Everything that is not in the record yet."""
    runs = SMALLEST if stage.cpu else RUNS
    layers = [("float32", 2)] if stage.cpu else [("float32", 16), ("bfloat16", 16), ("float32", 4)]
    for i, run in enumerate(runs):
        training(stage, *run)
        if i == 2:  # VGG11 in float32 is known: what could make it faster?
            for dtype, members in layers:
                convolutions(stage, dtype, members)
    over_released(stage)


if __name__ == "__main__":
    Stage("throughput", __doc__).main(body)
