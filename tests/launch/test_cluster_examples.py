"""The examples for Kubernetes, KubeRay and SkyPilot: valid by their schemas, with commands that parse."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from dali_aesthetic.launch.slurm import current_task
from tests.conftest import REPOSITORY
from tests.docs.commands import Command, Wrong, check

CONFIGS = REPOSITORY / "configs"
KUBERNETES = "1.31"
RAYJOB = json.loads((Path(__file__).parent / "rayjob_schema.json").read_text())
SKYPILOT = {
    "name", "num_nodes", "workdir", "resources", "envs", "secrets", "file_mounts", "setup", "run", "service",
    "config", "volumes",
}  # fmt: skip
"""Fields of a task by skypilot-org/skypilot, sky/utils/schemas.py at aa1f97b."""
SKYPILOT_RESOURCES = {"infra", "accelerators", "cpus", "memory", "use_spot", "disk_size", "image_id"}


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
    return found


def the_command(text: str) -> Command:
    """The one command of this package in a shell text, with variables and places to fill in as they are."""
    lines = [
        line for line in text.replace("\\\n", " ").splitlines() if line.startswith("dali-aesthetic run ")
    ]
    (line,) = lines
    return Command(tuple(shlex.split(re.sub(r"\$THRESHOLD|\"\$THRESHOLD\"", "0.5", line))), 0)


def valid_pod(template: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **template}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_indexed_job_is_valid_and_its_pods_are_tasks() -> None:
    job = read("kubernetes.yaml")
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    check(Command(("dali-aesthetic", "run", *container["args"]), 0))
    environ = {one["name"]: one.get("value", "3") for one in container["env"]}
    task = current_task(environ)
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 8, 8)
    assert (task.index, task.count, task.job) == (3, spec["completions"], "torchrun aesthetic")
    (rank,) = [one for one in container["env"] if one["name"] == "RANK"]
    assert "batch.kubernetes.io/job-completion-index" in rank["valueFrom"]["fieldRef"]["fieldPath"]
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    job = read("kubernetes.yaml")
    job["spec"]["backOffLimitPerIndex"] = 4
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, KUBERNETES, strict=True)


def test_the_rayjob_is_valid_and_its_command_is_for_ray() -> None:
    job = read("kuberay.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    jsonschema.validate(job["spec"], RAYJOB)
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        valid_pod(group["template"])
    command = the_command(job["spec"]["entrypoint"])
    check(command)
    assert command.words[command.words.index("--engine") + 1] == "ray"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job["spec"] | {"entryPoint": "x"}, RAYJOB)


def test_the_skypilot_file_has_known_fields_and_tasks() -> None:
    task = read("skypilot.yaml")
    assert set(task) <= SKYPILOT
    assert set(task["resources"]) <= SKYPILOT_RESOURCES
    check(the_command(task["run"]))
    names = set(re.findall(r"\b([A-Z_]+)=\$(SKYPILOT_\w+)", task["run"]))
    assert names == {
        ("RANK", "SKYPILOT_NODE_RANK"),
        ("WORLD_SIZE", "SKYPILOT_NUM_NODES"),
        ("TORCHELASTIC_RUN_ID", "SKYPILOT_TASK_ID"),
    }


def test_a_wrong_option_in_an_example_would_be_found() -> None:
    text = read("skypilot.yaml")["run"].replace("--log-interval", "--log-intervall")
    with pytest.raises(Wrong, match="No such option"):
        check(the_command(text))
