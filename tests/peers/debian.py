"""Programs that only Debian's archive has, fetched without root.

Owns the way from the names of Debian packages to their unpacked files in a folder: apt-get with its state and its cache in that folder
downloads them, dpkg-deb unpacks them; nothing is installed on the machine. Versions are those of the machine's own release, since its
archive keeps no older ones, so this is the one kind of peer that is not pinned to a version.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Callable


def unpack(packages: list[str], folder: Path, run: Callable[..., None]) -> None:
    """Leaves the packages' files in `folder/root`. `run(command, cwd=...)` runs one command, or raises."""
    for program in ("apt-get", "dpkg-deb"):
        if not shutil.which(program):
            raise FileNotFoundError(f"{program} is not here: {', '.join(packages)} can only be had on Debian and its like")
    work = folder / "apt"
    for part in ("state/lists/partial", "cache/archives/partial"):
        (work / part).mkdir(parents=True, exist_ok=True)
    options = [
        "-qq",
        f"--option=Dir::State={work}/state",
        f"--option=Dir::Cache={work}/cache",
        "--option=Dir::State::status=/var/lib/dpkg/status",
        "--option=Debug::NoLocking=1",
        # The clean-up that the machine's own configuration runs is not ours to run.
        "--option=APT::Update::Post-Invoke=",
        "--option=APT::Update::Post-Invoke-Success=",
        # Else root would hand the work to a user that may not write here.
        "--option=APT::Sandbox::User=root",
    ]
    run(["apt-get", *options, "update"], cwd=work)
    run(["apt-get", *options, "download", *packages], cwd=work)
    for package in sorted(work.glob("*.deb")):
        run(["dpkg-deb", "--extract", str(package), str(folder / "root")], cwd=work)
    shutil.rmtree(work)


def program(name: str, unpacked: Path) -> str:
    """The machine's own program where it is installed, else the unpacked one."""
    return shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") or str(unpacked)


if __name__ == "__main__":
    sys.exit("this is a part of install.py")
