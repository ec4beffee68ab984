"""The files for clusters that are not here, against what is known of their formats."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

SCRIPTS = Path(__file__).parents[2] / "scripts" / "cluster"
RAY = metadata.version("ray")

FIELDS: dict[str, set[str]] = {
    "RayJob": {"apiVersion", "kind", "metadata", "spec"},
    "RayJobSpec": {
        "entrypoint", "runtimeEnvYAML", "backoffLimit", "activeDeadlineSeconds", "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished", "submissionMode", "entrypointNumCpus", "rayClusterSpec", "suspend",
    },
    "RayClusterSpec": {"rayVersion", "headGroupSpec", "workerGroupSpecs", "enableInTreeAutoscaling"},
    "HeadGroupSpec": {"rayStartParams", "template", "serviceType"},
    "WorkerGroupSpec": {
        "groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams", "template",
    },
}  # fmt: skip
"""Of KubeRay's types (ray-operator/apis/ray/v1), what there is to set."""


def known(value: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    assert set(value) <= FIELDS[kind], kind
    return value


def test_the_launcher_s_file_fits_the_schema_of_ray() -> None:
    config = yaml.safe_load((SCRIPTS / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
    with pytest.raises(Exception, match=r"[Aa]dditional"):
        validate_config(prepare_config(config | {"workers": 3}))


def test_the_rayjob_has_the_fields_of_kuberay_and_the_pods_what_containers_need() -> None:
    job = known(yaml.safe_load((SCRIPTS / "rayjob.yaml").read_text()), "RayJob")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = known(job["spec"], "RayJobSpec")
    cluster = known(spec["rayClusterSpec"], "RayClusterSpec")
    assert cluster["rayVersion"] == RAY
    groups = [known(cluster["headGroupSpec"], "HeadGroupSpec")]
    groups += [known(group, "WorkerGroupSpec") for group in cluster["workerGroupSpecs"]]
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {"name", "image", "resources"} <= set(container)
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_the_rayjob_s_command_resumes_a_run_that_is_there(tmp_path: Path) -> None:
    spec = yaml.safe_load((SCRIPTS / "rayjob.yaml").read_text())["spec"]
    said = tmp_path / "python"
    said.write_text('#!/bin/sh\necho "$@"\n')
    said.chmod(0o755)
    command = spec["entrypoint"].replace("/runs/", f"{tmp_path}/")

    def run() -> str:
        path = {"PATH": f"{tmp_path}:/bin:/usr/bin"}
        return subprocess.run(
            shlex.split(command), env=path, capture_output=True, text=True, check=True
        ).stdout

    assert run().startswith("-m marl_aajr train --env simple_spread_v3 --method aajr --env-runners 8 --out")
    (tmp_path / "spread-aajr").mkdir()
    (tmp_path / "spread-aajr" / "config.yaml").touch()
    assert run() == f"-m marl_aajr train --resume --out {tmp_path}/spread-aajr\n"


def test_the_images_have_the_ray_of_the_tested_versions() -> None:
    assert f"rayproject/ray:{RAY}-py311" in (SCRIPTS / "Dockerfile").read_text()


def test_the_slurm_script_is_bash_with_known_directives() -> None:
    script = SCRIPTS / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    directives = re.findall(r"^#SBATCH --([\w-]+)=", script.read_text(), re.MULTILINE)
    assert {"job-name", "nodes", "ntasks-per-node", "time", "signal", "output"} == set(directives)
