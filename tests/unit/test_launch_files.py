"""What is under scripts/launch: read as those read it for whom it is meant, and by `ftrain run`'s own command line."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftrain_launcher.cli import build_parser

LAUNCH = Path(__file__).resolve().parents[2] / "scripts" / "launch"
FIELDS = Path(__file__).with_name("jobset_fields.yaml")
QUANTITY = re.compile(r"\d+(\.\d+)?([EPTGMk]|[EPTGMK]i|m)?")


def wrong(value: Any, type_: Any, where: str) -> Iterator[str]:
    """Where a value is not of a type, as ``jobset_fields.yaml`` has types."""
    match type_:
        case {}:
            names = {name.rstrip("!"): name for name in type_}
            if not isinstance(value, dict):
                yield f"{where}: not a mapping"
                return
            yield from (f"{where}.{name}: there is no such field" for name in value.keys() - names.keys())
            yield from (f"{where}.{n}: missing" for n, full in names.items() if full.endswith("!") and n not in value)
            for name in value.keys() & names.keys():
                yield from wrong(value[name], type_[names[name]], f"{where}.{name}")
        case [entry]:
            if not isinstance(value, list):
                yield f"{where}: not a list"
                return
            for number, one in enumerate(value):
                yield from wrong(one, entry, f"{where}[{number}]")
        case str() if not is_a(value, type_):
            yield f"{where}: {value!r} is not {type_}"


def is_a(value: Any, word: str) -> bool:
    match word:
        case "any":
            return True
        case "string":
            return isinstance(value, str)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
        case "quantity":
            return QUANTITY.fullmatch(str(value)) is not None
        case "words":
            return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
    return value in word.split(" | ")


def options_of(command: str) -> Any:
    """What `ftrain run` makes of a command line, its variables filled in."""
    words = shlex.split(re.sub(r"\$\{?CONTROLLER\}?", "10.0.0.1", command).replace("$NODE", "n1"))
    return build_parser().parse_args(words[words.index("run") :])


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    secret, jobset = yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text())
    assert secret["kind"] == "Secret"
    return jobset


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    [job] = manifest["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]


def test_the_manifest_has_jobset_s_fields_and_types(manifest: dict[str, Any]) -> None:
    assert list(wrong(manifest, yaml.safe_load(FIELDS.read_text()), "")) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["spec"].update(replicas=2), ".spec.replicas: there is no such field"),
        (lambda m: m["metadata"].pop("name"), ".metadata.name: missing"),
        (lambda m: pod_of(m).update(restartPolicy="Always"), "'Always' is not OnFailure | Never"),
        (lambda m: pod_of(m).update(terminationGracePeriodSeconds="2m"), "'2m' is not integer"),
        (lambda m: pod_of(m)["containers"][0].update(command="ftrain"), "command: not a list"),
    ],
)
def test_what_jobset_would_refuse_is_found(change: Any, says: str) -> None:
    jobset = list(yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text()))[1]
    change(jobset)
    [found] = wrong(jobset, yaml.safe_load(FIELDS.read_text()), "")
    assert says in found


def test_a_pod_has_memory_for_snapshots_time_to_flush_and_finds_the_controller(manifest: dict[str, Any]) -> None:
    pod, spec = pod_of(manifest), manifest["spec"]
    [container], [job] = pod["containers"], spec["replicatedJobs"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    at = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert at["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert at["/etc/ftrain"]["secret"]["defaultMode"] == 0o400
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    subdomain = spec["network"]["subdomain"]
    assert environment["CONTROLLER"] == f"{manifest['metadata']['name']}-{job['name']}-0-0.{subdomain}"
    script = container["command"][-1]
    chosen = options_of(script[script.index("exec ftrain") :].replace("\\\n", " "))
    assert chosen.flush_seconds < pod["terminationGracePeriodSeconds"]
    assert str(chosen.secret_file) == "/etc/ftrain/secret"
    assert job["template"]["spec"]["completions"] > int(chosen.nnodes), "a spare"


def unit() -> str:
    return (LAUNCH / "ftrain@.service").read_text()


def test_the_unit_is_one_for_systemd(tmp_path: Path) -> None:
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("no systemd-analyze here")
    file = tmp_path / "ftrain@run7.service"
    file.write_text(unit().replace("/opt/ftrain/bin/ftrain", sys.executable))
    done = subprocess.run([verify, "verify", "--man=no", str(file)], capture_output=True, text=True, timeout=30)
    said = [line for line in done.stderr.splitlines() if file.name in line]
    assert (done.returncode, said) == (0, []), done.stderr


def test_the_unit_runs_a_command_that_ends_within_its_time() -> None:
    settings = dict(line.split("=", 1) for line in unit().splitlines() if "=" in line and line[0] != "#")
    conf = (LAUNCH / "ftrain.conf").read_text()
    given = dict(line.split("=", 1) for line in conf.splitlines() if line and line[0] != "#")
    given |= dict(word.split("=", 1) for word in settings["Environment"].split())
    command = settings["ExecStart"].replace("%i", "run7")
    for name, value in given.items():
        command = command.replace(f"${{{name}}}", value).replace(f"${name}", value)
    chosen = options_of(command)
    assert (chosen.name, chosen.script, chosen.arguments) == ("run7", "train.py", ["--epochs", "3"])
    assert chosen.flush_seconds < float(settings["TimeoutStopSec"])


@pytest.mark.parametrize("name", ["ssh", "slurm.sbatch"])
def test_scripts_are_sound_shell(name: str) -> None:
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True, timeout=10)
    if (shellcheck := shutil.which("shellcheck")) is not None:
        subprocess.run([shellcheck, str(LAUNCH / name)], check=True, timeout=30)
