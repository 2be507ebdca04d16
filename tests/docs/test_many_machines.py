"""The lines for Slurm and Kubernetes give every worker its TF_CONFIG."""

import pathlib
import re
import subprocess
import textwrap

import pytest

from keras_maml.execution import workers

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "guides" / "many-machines.md"
PROGRAMS = {
    "python": 'echo "$TF_CONFIG"',
    "scontrol": r"printf 'node1\nnode2\nnode3\nnode4\n'",
    "srun": 'for i in 0 1 2 3; do SLURM_PROCID=$i "${@:2}"; done',
}


def script_of(kind):
    text = GUIDE.read_text()
    if kind == "Slurm":
        return re.search(r"```bash\n(#!/bin/bash\n.*?)```", text, re.DOTALL)[1]
    lines = re.search(r"- \|\n(.*?)\n +volumeMounts", text, re.DOTALL)[1]
    return "".join(
        f"export JOB_COMPLETION_INDEX={i}\n(\n{textwrap.dedent(lines)}\n)\n" for i in range(4)
    )


@pytest.mark.parametrize(
    ("kind", "address"), [("Slurm", "node3:12345"), ("Kubernetes", "maml-worker-0-2.maml:12345")]
)
def test_every_worker_gets_its_place(tmp_path, kind, address):
    for name, body in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node[1-4]"}
    script = ["bash", "-c", script_of(kind)]
    printed = subprocess.run(script, env=environment, check=True, capture_output=True, text=True)
    configs = printed.stdout.splitlines()
    assert [workers._place(config) for config in configs] == [(i, 4) for i in range(4)]
    assert all(workers._addresses(config)[2] == address for config in configs)
