"""Cluster resolver: the workers as TF_CONFIG or Slurm describe them."""

import json
import os

import tensorflow as tf


def resolver():
    """Returns the cluster resolver for TF_CONFIG or Slurm; None if there is only this process."""
    if os.environ.get("TF_CONFIG"):
        return _tf_config_resolver(os.environ["TF_CONFIG"])
    tasks = _slurm_number("SLURM_STEP_NUM_TASKS", default=1)
    return _slurm_resolver(tasks) if tasks > 1 else None


def _slurm_number(name, default):
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ValueError(f"{name} must be a number, which Slurm sets, got {text!r}: unset it")
    return int(text)


def _tf_config_resolver(text):
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        cluster[task["type"]][int(task["index"])]  # exists
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"TF_CONFIG does not name this process ({type(error).__name__}: {error}): it must be "
            '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}, got '
            f"{text}"
        ) from None
    if {*cluster} - {"chief", "worker"}:
        raise ValueError(
            f"TF_CONFIG may have a chief and workers only, got {', '.join(cluster)}: all of them train"
        )
    if sum(map(len, cluster.values())) == 1:
        return None
    return tf.distribute.cluster_resolver.TFConfigClusterResolver()


def _slurm_resolver(tasks):
    # Each job has its own ports, since jobs may share a machine.
    port = 20000 + _slurm_number("SLURM_JOB_ID", default=0) * 16 % 10000
    if tf.config.list_physical_devices("GPU"):
        return tf.distribute.cluster_resolver.SlurmClusterResolver(port_base=port)
    # TensorFlow's resolver counts GPUs, which this machine does not have: one per task is assumed.
    slurm = tf.distribute.cluster_resolver.SlurmClusterResolver(
        port_base=port, gpus_per_node=tasks, gpus_per_task=1, auto_set_gpu=False
    )
    spec = slurm.cluster_spec()
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        spec, task_type="worker", task_id=slurm.task_id, num_accelerators={"GPU": 0}
    )
