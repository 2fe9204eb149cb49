"""The client that the makers of the Python SDK put before the conformance suites, from the SDK's source, with an mcpeg in between.

    reference_client.py CLIENT MCPEG url|connect URL

CLIENT is that client's file, MCPEG the program, URL the suite's server. An mcpeg with that server as its only service is started for the
one scenario that the environment names, and the client reaches it at `/mcp/suite`, or through `mcpeg connect`. What it logged goes to standard
error, where the suites keep it. `direct` instead of `url` leaves mcpeg out.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Iterator

import httpx2
from mcp import StdioServerParameters

TOKEN = "token-of-the-local-agent"
MAIN = """version: "1.0"
secrets:
  providers: { own: { type: file, path: secrets.yaml } }
  items: { local: { provider: own, path: local } }
transports: { http: { enabled: true, port: 0, token: "${secret.local.token}" } }
services: { suite: { config_file: suite.yaml } }
"""


def main() -> None:
    client, mcpeg, way, url = sys.argv[1:]
    if way == "direct":
        return run(load(client), url)
    with tempfile.TemporaryDirectory() as folder, started(mcpeg, Path(folder), url) as ready:
        module = load(client)
        if way == "url":
            show_token()
            url = re.search(r"http://127\.0\.0\.1:\d+/mcp", ready)[0] + "/suite"
        else:
            arguments = ["connect", "suite", "--config", f"{folder}/mcpeg.yaml"]
            of_url = module.Client
            module.Client = lambda _url, **more: of_url(StdioServerParameters(command=mcpeg, args=arguments), **more)
        run(module, url)


@contextlib.contextmanager
def started(mcpeg: str, folder: Path, url: str) -> Iterator[str]:
    """Runs an mcpeg in the folder, and gives the line with which it says that it is ready."""
    for name, text in [
        ("mcpeg.yaml", MAIN),
        ("secrets.yaml", f"local: {{ token: {TOKEN} }}\n"),
        ("suite.yaml", f"type: mcp\nurl: {url}\n"),
    ]:
        path = folder / name
        path.touch(0o600)
        path.write_text(text)
    log = (folder / "stderr.log").open("w+")
    command = [mcpeg, "run", "--config", str(folder / "mcpeg.yaml")]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        yield process.stdout.readline()
    finally:
        process.terminate()
        process.wait(10)
        log.seek(0)
        sys.stderr.write(log.read())


def show_token() -> None:
    """Every HTTP client that is made from now on shows the token: the SDK makes its own, which cannot be told to."""
    make = httpx2.AsyncClient.__init__

    def make_with_token(self: Any, *positional: Any, **named: Any) -> None:
        make(self, *positional, **named)
        self.headers["Authorization"] = f"Bearer {TOKEN}"

    httpx2.AsyncClient.__init__ = make_with_token


def load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("conformance_client", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(module: Any, url: str) -> None:
    sys.argv = ["client.py", url]
    module.main()


if __name__ == "__main__":
    main()
