"""Stage "memory": the peak that `Population.memory` predicts against the one that was measured.

Every population has a process of its own: a peak is one number of a whole process. A study plans
with 90 % of what is free, so that a measured peak up to 1.1 times the predicted one is harmless.
"""

import json
from typing import Any

from gpu_stage import Stage, last_line

POPULATIONS = [
    *(("vgg11_bn", n, "float32") for n in (1, 4, 16)),
    *(("vgg11_bn", 16, "bfloat16"), ("resnet18", 4, "float32"), ("resnet18", 16, "float32")),
    *(("mlp", 40, "float32"), ("vgg11_bn", 60, "float32")),
]
SMALLEST = [("vgg11_bn", 2, "float32")]


def population(stage: Stage, model: str, members: int, dtype: str, label: str) -> dict[str, Any]:
    """What `gpu_population.py` finds, or {"failed": why}."""
    name = f"{label}-{model}-{dtype}-{members}"
    file = stage.out / label / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    options = ["--smallest"] if stage.cpu else []
    command = stage.python("gpu_population.py", model, members, dtype, file, *options)
    code = stage.run(command, name, 60.0)
    if code:
        return {"failed": f"{name}: exit code {code}: {last_line(stage.logs / f'{name}.log')}"}
    return json.loads(file.read_text())


def body(stage: Stage) -> None:
    """Everything that is not in the record yet."""
    for model, members, dtype in SMALLEST if stage.cpu else POPULATIONS:
        cells = {"network": model, "dtype": dtype, "members": members}
        if stage.found(**cells):
            continue
        row = population(stage, model, members, dtype, "memory")
        if "failed" in row:
            stage.add(**cells, failed=row["failed"])
            continue
        predicted, gib = row["predicted"], 2**30
        stage.add(
            **cells,
            **{f"predicted {part}, GiB": predicted[part] / gib for part in predicted},
            **{
                "measured, GiB": row["measured"] / gib,
                "with events, GiB": row["with events"] / gib,
            },
            **{"measured / predicted": row["measured"] / predicted["total"], "by": row["clock"]},
        )


if __name__ == "__main__":
    Stage("memory", __doc__).main(body)
