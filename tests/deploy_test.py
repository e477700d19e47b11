"""The deployment files of training: their schema, their commands, and their scripts."""

import copy
import os
import re
import shlex
import subprocess
from pathlib import Path

import click
import kubernetes_validate
import pytest
import yaml

from keras_ssl.cli import cli
from keras_ssl.training import cluster

DEPLOY = Path(__file__).parent.parent / "deploy"
README = (DEPLOY / "README.md").read_text()
JOB, *CLAIMS = yaml.safe_load_all((DEPLOY / "tfjob.yaml").read_text())
WORKER = JOB["spec"]["tfReplicaSpecs"]["Worker"]
(CONTAINER,) = WORKER["template"]["spec"]["containers"]
SRUN = """#!/bin/sh
printf '%s\\n' "$*" >> srun.log
echo "$SRUN_CPUS_PER_TASK" >> cpus.log
test "$(wc -l < srun.log)" -gt "$FAILURES"
"""


def pod():
    # The pods that the operator creates from the template.
    template = copy.deepcopy(WORKER["template"])
    template["spec"]["restartPolicy"] = WORKER["restartPolicy"]
    return {
        "apiVersion": "v1", "kind": "Pod", **template,
        "metadata": {**template["metadata"], "name": f"{JOB['metadata']['name']}-worker-0"},
    }  # fmt: skip


def parsed(arguments):
    """Parses a `keras-ssl` command line; returns the options of `pretrain`."""
    program, name, *rest = arguments
    assert program == "keras-ssl"
    return cli.commands[name].make_context(name, rest).params


@pytest.fixture
def slurm(tmp_path):
    """Runs slurm.sh, without pauses, with an `srun` that fails the given number of times.

    Returns the process and the arguments of each call.
    """
    for name, text in (("srun", SRUN), ("sleep", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(failures):
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "FAILURES": str(failures),
            "SLURM_CPUS_PER_TASK": "8", "DATA": "/photos of us",
        }  # fmt: skip
        process = subprocess.run(
            ["bash", DEPLOY / "slurm.sh"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return process, (tmp_path / "srun.log").read_text().splitlines()

    return run


@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
def test_manifest_fits_its_schema(version):
    # There is no schema of TFJob among those of Kubernetes: its pods are validated.
    for document in (pod(), *CLAIMS):
        kubernetes_validate.validate(document, version, strict=True)
    broken = pod()
    broken["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, version, strict=True)


def test_manifest_is_what_the_operator_and_the_recovery_need():
    assert (JOB["apiVersion"], JOB["kind"]) == ("kubeflow.org/v1", "TFJob")
    assert set(JOB["spec"]) == {"runPolicy", "tfReplicaSpecs"}
    assert set(JOB["spec"]["runPolicy"]) == {"cleanPodPolicy", "backoffLimit"}
    assert set(JOB["spec"]["tfReplicaSpecs"]) == {
        "Worker"
    }  # a Chief would not start the others' clock
    assert set(WORKER) == {"replicas", "restartPolicy", "template"}
    assert CONTAINER["name"] == "tensorflow"
    assert CONTAINER["ports"] == [{"name": "tfjob-port", "containerPort": 2222}]
    # A worker whose peer failed exits with 2, which the operator's ExitCode never restarts.
    assert WORKER["restartPolicy"] == "OnFailure"
    assert JOB["spec"]["runPolicy"]["backoffLimit"] >= 5 * WORKER["replicas"]


def test_manifest_mounts_what_the_command_names():
    options = parsed(CONTAINER["command"])
    volumes = WORKER["template"]["spec"]["volumes"]
    mounts = {m["mountPath"]: m for m in CONTAINER["volumeMounts"]}
    claimed = {
        v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v
    }
    assert claimed == {c["metadata"]["name"] for c in CLAIMS}
    # The workers are on several machines.
    assert all(c["spec"]["accessModes"] == ["ReadWriteMany"] for c in CLAIMS)
    assert {m["name"] for m in mounts.values()} == {v["name"] for v in volumes}
    assert mounts[options["data"]]["readOnly"]
    for path in (options["checkpoint"], options["log"], options["out"]):
        assert not mounts[f"/{path.split('/')[1]}"].get("readOnly")
    (home,) = [e["value"] for e in CONTAINER["env"] if e["name"] == "HOME"]
    assert home in mounts  # the root file system is read-only
    assert options["batch_size"] % WORKER["replicas"] == 0


def test_both_files_train_the_same(slurm):
    process, (call,) = slurm(failures=0)
    assert process.returncode == 0, process.stderr
    arguments = call.split(" ", 1)
    assert arguments[0] == "--kill-on-bad-exit=1"
    there = parsed(shlex.split(arguments[1].replace("/photos of us", "'/photos of us'")))
    here = parsed(CONTAINER["command"])
    places = {"data", "checkpoint", "out", "log"}
    assert {k: v for k, v in there.items() if k not in places} == {
        k: v for k, v in here.items() if k not in places
    }
    assert here["task"] == "rotation"
    assert here["strategy"] == "multi_worker"
    assert there["data"] == "/photos of us"
    assert len({there[k] for k in places}) == 4
    with pytest.raises(click.NoSuchOption):
        parsed([*CONTAINER["command"], "--chekpoint=/tmp"])


def test_slurm_script_starts_the_workers_again(slurm, tmp_path):
    process, calls = slurm(failures=2)
    assert process.returncode == 0
    assert len(calls) == 3
    assert len(set(calls)) == 1
    assert process.stderr.count("has failed") == 2
    assert (tmp_path / "cpus.log").read_text().split() == ["8"] * 3
    assert (tmp_path / "training").is_dir()


def test_slurm_script_gives_up(slurm):
    process, calls = slurm(failures=100)
    assert process.returncode == 1
    assert len(calls) == 10


def test_slurm_script_is_one_that_sbatch_takes():
    text = (DEPLOY / "slurm.sh").read_text()
    subprocess.run(["bash", "-n", DEPLOY / "slurm.sh"], check=True)
    header = text[: text.index("\nset -")].splitlines()
    assert header[0] == "#!/usr/bin/env bash"
    assert text.count("#SBATCH") == sum(line.startswith("#SBATCH --") for line in header)
    options = dict(
        line[len("#SBATCH --") :].partition("=")[::2] for line in header if "SBATCH" in line
    )
    assert options["requeue"] == ""
    assert options["open-mode"] == "append"
    assert int(options["nodes"]) * int(options["ntasks-per-node"]) == WORKER["replicas"]


@pytest.mark.parametrize(
    ("nodes", "per_node", "hosts"),
    [("localhost", "2", ["localhost", "localhost"]), ("gpu[7-8]", "1(x2)", ["gpu7", "gpu8"])],
)
def test_workers_find_each_other_under_slurm(monkeypatch, nodes, per_node, hosts):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setenv("SLURM_STEP_NODELIST", nodes)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", per_node)

    def workers(job, index):
        monkeypatch.setenv("SLURM_JOB_ID", str(job))
        monkeypatch.setenv("SLURM_PROCID", str(index))
        resolver = cluster.resolver()
        assert (resolver.task_type, resolver.task_id) == ("worker", index)
        return resolver.cluster_spec().as_dict()["worker"]

    first = workers(4711, 0)
    assert [address.split(":")[0] for address in first] == hosts
    assert len(set(first)) == 2
    assert workers(4711, 1) == first
    assert not set(workers(4712, 0)) & set(first)  # another job may share the machines
    low, high = map(int, re.search(r"one of (\d+) to (\d+)", README).groups())
    for job in (1, 624, 625, 10**9):
        assert all(low <= int(address.split(":")[1]) <= high for address in workers(job, 0))


def test_readme_names_what_exists():
    for file in DEPLOY.iterdir():
        assert file.name == "README.md" or f"`{file.name}`" in README, file.name
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (DEPLOY / link).exists(), link
    lines = re.findall(r"^ {4}(keras-ssl pretrain .*)$", README, re.MULTILINE)
    assert lines
    for line in lines:
        assert parsed(shlex.split(line))["strategy"] == "multi_worker"
