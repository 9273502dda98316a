"""Commands without a model answer without torch, whose import takes seconds; so does everything that is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

COMMANDS = {
    "--help": 0,
    "--version": 0,
    "train --help": 0,
    "eval --help": 0,
    "nosuch": 2,
    "recipes": 0,
    "recipes household-demo": 0,
    "train nosuch": 2,
    "train household-demo --train.updates x": 2,
    "train household-demo --train.update 3": 2,
    "train household-demo --rollout.group_size 1": 2,
    "train household-demo --objective.estimator grop": 2,
    "train household-demo --env.name housold": 2,
    "train household-demo --env.split nosuch": 2,
    "train household-demo --eval.split valid_seen,nosuch": 2,
    "train household-demo --curriculum.name scaling --curriculum.scaling.horizons 9,3": 2,
    "train household-demo --curriculum.name sclaing": 2,
    "train household-demo --replay.name arpo --replay.start nosuch": 2,
    "train alfworld-grpo": 2,
    "train household-demo --model.path smolm2-135m": 2,
    "train household-demo --model.path smollm2-135m": 2,
    "train household-demo --model.path no/such/model": 2,
    "train household-demo --run .": 2,
    "train household-demo --run nosuch --resume": 2,
    "eval random --env household --split valid_seen --episodes 2": 0,
    "eval walkthrough --env household --split valid_seen --episodes 2": 0,
    "eval expert --env household --split valid_seen --episodes 2 --env.distractors 1": 0,
    "eval random --env household --temperature 1": 2,
    "eval random --env housold": 2,
    "eval nosuch": 2,
    "eval name --base-url ftp://127.0.0.1": 2,
    "eval name --base-url http://127.0.0.1:9/v1 --env household --format tag": 2,
    "panel --help": 0,
    "panel --list": 0,
    "panel random houshold": 2,
    "panel nosuch": 2,
    "panel --repeat nosuch.json": 2,
    "sweep --help": 0,
    "sweep nosuch": 2,
    "sweep alfworld-study --dry-run": 0,
    "sweep alfworld-study": 2,
    "report nosuch": 2,
    "view --help": 0,
    "view nosuch": 2,
    "tail nosuch": 2,
    "compare nosuch": 2,
    "export nosuch elsewhere": 2,
    "export nosuch elsewhere --as jsonl": 2,
    "doctor nosuch": 2,
    "play household": 0,
    "check-env household --episodes 1": 0,
    "bench env housold": 2,
    "data list": 0,
    "models list": 0,
    "models gte": 2,
    "models get smolm2-135m": 2,
    "models check smollm2-135m": 2,
}
SCRIPT = """
import json, sys
from envrl.cli.main import main
found = []
for command in json.loads(sys.argv[1]):
    status = main(command.split())
    heavy = {"torch", "transformers", "tokenizers", "matplotlib", "scipy"}
    found.append([command, status, sorted(heavy & set(sys.modules))])
print(json.dumps(found))
"""


def test_no_command_without_a_model_loads_torch(tmp_path: Path) -> None:
    environment = {"PATH": "", "PYTHONPATH": ":".join(sys.path), "HOME": str(tmp_path), "OPENAI_API_KEY": "x"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(list(COMMANDS))],
        capture_output=True,
        text=True,
        input="",
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[command, status, []] for command, status in COMMANDS.items()]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
