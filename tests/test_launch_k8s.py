import re

import jsonschema
import pytest
import yaml

from tests.launching import ROOT, Clone

STUDY = ("--image=r/prunejax:1", "--config=configs/digits.py", "--workdir=/runs/digits")


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def name_only(**fields: object) -> dict[str, object]:
    """A JSON schema of an object that has these fields and no others."""
    return {"type": "object", "properties": fields, "additionalProperties": False}


STRING, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
LABELS = {"type": "object", "additionalProperties": STRING}


def many(item: object) -> dict[str, object]:
    return {"type": "array", "items": item, "minItems": 1}


CONTAINER = name_only(
    name=STRING,
    image=STRING,
    args=many(STRING),
    env=many(name_only(name=STRING, value=STRING)),
    ports=many(name_only(containerPort=COUNT)),
    resources=name_only(limits={"type": "object", "additionalProperties": COUNT}),
    volumeMounts=many(name_only(name=STRING, mountPath=STRING)),
)
VOLUME = name_only(
    name=STRING,
    persistentVolumeClaim=name_only(claimName=STRING),
    emptyDir=name_only(medium={"const": "Memory"}),
)
POD_SPEC = name_only(
    restartPolicy={"const": "Never"},  # what a podFailurePolicy demands
    terminationGracePeriodSeconds=COUNT,
    nodeSelector=LABELS,
    containers=many(CONTAINER),
    volumes=many(VOLUME),
)
EXIT_CODES = name_only(
    containerName=STRING, operator={"enum": ["In", "NotIn"]}, values=many({"type": "integer"})
)
JOB_SPEC = name_only(
    parallelism=COUNT,
    completions=COUNT,
    completionMode={"enum": ["Indexed", "NonIndexed"]},
    backoffLimit=COUNT,
    podFailurePolicy=name_only(
        rules=many(
            name_only(
                action={"enum": ["FailJob", "FailIndex", "Ignore", "Count"]}, onExitCodes=EXIT_CODES
            )
        )
    ),
    template=name_only(spec=POD_SPEC),
)
REASONS = ["BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded"]
RULE = name_only(
    name=STRING,
    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
    onJobFailureReasons=many({"enum": [*REASONS, "PodFailurePolicy"]}),
)
# The parts of JobSet v1alpha2 and Job v1 that the manifests use; an unknown field is an error.
JOBSET = name_only(
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=name_only(name=STRING, annotations=LABELS),
    spec=name_only(
        failurePolicy=name_only(maxRestarts=COUNT, rules=many(RULE)),
        network=name_only(enableDNSHostnames=FLAG, publishNotReadyAddresses=FLAG),
        replicatedJobs=many(
            name_only(name=STRING, replicas=COUNT, template=name_only(spec=JOB_SPEC))
        ),
    ),
)


def rendered(clone: Clone, *arguments: str) -> dict:
    result = clone.run("launch/k8s/submit.sh", arguments[0], "--dry-run", *arguments[1:])
    assert result.returncode == 0, result.stderr
    first, *manifest, last = result.stdout.splitlines()
    assert (first, last) == ("kubectl create -f - <<'EOF'", "EOF")
    return yaml.safe_load("\n".join(manifest))


def check_jobset(manifest: dict) -> tuple[dict, dict]:
    """Checks a manifest against the schema and itself; returns its Job and container."""
    jsonschema.validate(manifest, JOBSET)
    (jobs,) = manifest["spec"]["replicatedJobs"]
    job = jobs["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    volumes = {volume["name"] for volume in job["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert job["parallelism"] == job["completions"]
    assert job["completionMode"] == "Indexed"
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    return job, container


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_manifests_as_they_stand(kind):
    check_jobset(yaml.safe_load((ROOT / "launch" / "k8s" / f"jobset-{kind}.yaml").read_text()))


def test_gpu_jobset(clone):
    values = ("--name=s1", "--pods=8", "--gpus=2", "--claim=c", "--config.a=it's 'b' & \\1 | #x")
    manifest = rendered(clone, "gpu", *STUDY, *values, "--", "--quiet")
    job, container = check_jobset(manifest)
    assert manifest["metadata"]["name"] == "s1"
    assert job["parallelism"] == 8
    assert container["image"] == "r/prunejax:1"
    assert container["args"] == [
        "--config=configs/digits.py",
        "--workdir=/runs/digits",
        "--config.a=it's 'b' & \\1 | #x",
        "--quiet",
    ]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert len(environment.pop("PRUNEJAX_SECRET")) == 32
    assert environment == {
        "JAX_COORDINATOR_ADDRESS": "s1-workers-0-0.s1:55527",
        "JAX_PROCESS_COUNT": "8",
    }
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 2}
    assert job["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == "c"


def test_arguments_reach_the_container_as_they_were_given(clone):
    """Kubernetes puts variables in for "$(NAME)", the secret among them, and "$" for "$$"."""
    given = ["--workdir=/runs/$(PRUNEJAX_SECRET)", "--config.a=$(JAX_PROCESS_COUNT) $$ $x $"]
    _, container = check_jobset(rendered(clone, "gpu", *STUDY[:2], *given))
    values = {entry["name"]: entry["value"] for entry in container["env"]}

    def expanded(text):  # third_party/forked/golang/expansion of Kubernetes
        put = lambda m: "$" if m[0] == "$$" else values.get(m[1], m[0])  # noqa: E731
        return re.sub(r"\$\$|\$\(([^)]*)\)", put, text)

    assert [expanded(text) for text in container["args"]] == [STUDY[1], *given]


def test_tpu_jobset(clone):
    values = ("--pods=2", "--accelerator=tpu-v6e-slice", "--topology=4x4", "--chips=8")
    job, container = check_jobset(rendered(clone, "tpu", *STUDY, *values))
    assert job["parallelism"] == 2
    assert job["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert container["resources"]["limits"] == {"google.com/tpu": 8}
    assert container["args"] == ["--config=configs/digits.py", "--workdir=/runs/digits"]


def test_kubectl_gets_the_manifest(clone):
    clone.program("kubectl", '#!/bin/sh\necho "$@" >>"$LOG"\ncat >>"$LOG"\n')
    assert clone.run("launch/k8s/submit.sh", "gpu", *STUDY).returncode == 0
    first, *manifest = clone.logged()
    assert first == "create -f -"
    check_jobset(yaml.safe_load("\n".join(manifest)))


def test_image_copies_what_there_is():
    lines = (ROOT / "launch" / "k8s" / "Dockerfile").read_text().splitlines()
    sources = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    kept = (ROOT / "launch" / "k8s" / "Dockerfile.dockerignore").read_text().splitlines()
    assert [s for s in sources if f"!{s.split('/')[0]}" not in kept] == []
