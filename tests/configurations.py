#!/usr/bin/env python3
"""Checks every configuration that the repository shows: the binary takes it, and refuses it once it is broken.

    configurations.py MCPEG        needs PyYAML; `tests/run examples` calls it

What is checked: config/ (as it stands, and with its overlays), deploy/systemd/, the ConfigMap of deploy/kubernetes/, the blocks of
the documentation, and the shape of deploy/otel-collector/.

A block of the documentation is one when its first line is a comment with its file's name: `# mcpeg.yaml` begins a configuration,
`# services/NAME.yaml` and `# templates/NAME` belong to the one before. Each is checked with nothing in the environment but PATH.

Invariant: a check that cannot fail is none, so each configuration is checked a second time with a key that does not exist.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parent.parent
BAD_CONFIGURATION = 64


class Example(NamedTuple):
    """A configuration, laid out in a folder of its own."""

    name: str
    folder: Path
    arguments: tuple[str, ...] = ()


def main(mcpeg: str) -> int:
    mcpeg = str(Path(mcpeg).absolute())
    with tempfile.TemporaryDirectory() as folder:
        examples = [*configuration_of_the_repository(Path(folder)), *deployed(Path(folder)), *documented(Path(folder))]
        problems = [problem for example in examples for problem in problems_of(mcpeg, example)]
    collectors = sorted((ROOT / "deploy" / "otel-collector").glob("*.yaml"))
    problems += [problem for file in collectors for problem in problems_of_collector(file)]
    for problem in problems:
        print(f"configurations.py: {problem}", file=sys.stderr)
    print(f"configurations.py: {len(examples)} configurations and {len(collectors)} collectors checked, {len(problems)} problems")
    return 1 if problems else 0


def problems_of(mcpeg: str, example: Example) -> Iterator[str]:
    taken = check(mcpeg, example)
    if taken.returncode != 0:
        yield f"{example.name} is refused:\n{taken.stderr.replace(str(example.folder), '').strip()}"
        return
    read = [Path(file) for file in json.loads(taken.stdout)["files"]]
    for file in read:
        whole = file.read_text()
        file.write_text(f"{whole}\nno_such_key: true\n")
        if check(mcpeg, example).returncode != BAD_CONFIGURATION:
            yield f"{example.name} is not refused with an unknown key in {file.name}"
        file.write_text(whole)
    unread = {file for file in example.folder.glob("services/*.yaml")} - set(read)
    if unread:
        yield f"{example.name} does not use {', '.join(sorted(file.name for file in unread))}"


def check(mcpeg: str, example: Example) -> subprocess.CompletedProcess[str]:
    command = [mcpeg, "check", "--json", "--config", str(example.folder / "mcpeg.yaml"), *example.arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env={"PATH": os.environ["PATH"]})
    if done.returncode != 0 and not done.stderr:
        done.stderr = done.stdout
    return done


def configuration_of_the_repository(folder: Path) -> Iterator[Example]:
    """config/ as a fresh checkout has it, and with each overlay; for `local` a secrets file is made as its head says."""
    plain = shutil.copytree(ROOT / "config", folder / "config", ignore=shutil.ignore_patterns("run", "data", "api-keys.yaml"))
    yield Example("config/", plain)
    yield Example("config/ with the overlay development", plain, ("--environment", "development"))
    local = shutil.copytree(plain, folder / "local")
    secrets = local / "secrets" / "api-keys.yaml"
    shutil.copyfile(secrets.with_name("api-keys.yaml.example"), secrets)
    secrets.chmod(0o600)
    yield Example("config/ with the overlay local", local, ("--environment", "local"))


def deployed(folder: Path) -> Iterator[Example]:
    yield Example("deploy/systemd/", shutil.copytree(ROOT / "deploy" / "systemd", folder / "systemd"))
    manifest = ROOT / "deploy" / "kubernetes" / "sidecar.yaml"
    objects = {document["kind"]: document for document in yaml.safe_load_all(manifest.read_text())}
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    volume = next(volume["configMap"] for volume in pod["volumes"] if "configMap" in volume)
    for item in volume["items"]:
        write(folder / "kubernetes" / item["path"], objects["ConfigMap"]["data"][item["key"]])
    yield Example("the ConfigMap of deploy/kubernetes/sidecar.yaml", folder / "kubernetes")


def documented(folder: Path) -> Iterator[Example]:
    places = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "deploy").glob("*/README.md"))]
    for place in places:
        name = str(place.relative_to(ROOT))
        examples: list[Example] = []
        for block in re.findall(r"^```(?:yaml|jinja)\n(.*?)^```$", place.read_text(), re.DOTALL | re.MULTILINE):
            file = re.match(r"(?:#|\{#) (mcpeg\.yaml|services/[\w-]+\.yaml|templates/[\w.-]+)\b", block)
            if not file:
                continue
            if file[1] == "mcpeg.yaml":
                number = str(len(examples) + 1)
                examples.append(Example(f"{name}, configuration {number}", folder / "documented" / name / number))
            write(examples[-1].folder / file[1], block)
            # A sealed file is opened by `run`; `check` wants it to be there.
            for sealed in re.findall(r"path: ([\w./-]+\.age), sealed_with", block):
                if not sealed.startswith("/"):
                    write(examples[-1].folder / sealed, "")
        yield from examples


def problems_of_collector(file: Path) -> Iterator[str]:
    """What the collector itself says of such mistakes at its start, and that an exporter's queue is on disk."""
    config = yaml.safe_load(file.read_text())
    name = file.relative_to(ROOT)
    service = config["service"]
    for kind in ("receivers", "processors", "exporters"):
        used = {component for pipeline in service["pipelines"].values() for component in pipeline.get(kind, [])}
        declared = set(config.get(kind, {}))
        for component in sorted(used ^ declared):
            yield f"{name}: {kind}: {component} is {'not declared' if component in used else 'not used'}"
    if set(service.get("extensions", [])) != set(config.get("extensions", {})):
        yield f"{name}: the extensions that are declared are not those that are started"
    for exporter, settings in config["exporters"].items():
        if settings.get("sending_queue", {}).get("storage") not in service.get("extensions", []):
            yield f"{name}: the queue of {exporter} is not on disk"


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: configurations.py MCPEG")
    sys.exit(main(sys.argv[1]))
