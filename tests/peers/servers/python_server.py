"""An MCP server on PyPI's `mcp` SDK: what the tests put behind mcpeg as an upstream of either era.

    python_server.py stdio
    python_server.py http [--port P]    0, the default, takes a free port; prints `listening on http://127.0.0.1:P/mcp`

Tools, the same as those of the two Node servers (`tools.mjs`):
- `echo(text)` returns the text.
- `whoami()` tells which credentials have arrived and which process answers, and never a credential itself: the SHA-256
  (hex) and the length in bytes of the request's whole `Authorization` and `X-Api-Key` values and of the environment
  variable `MCPEG_TEST_TOKEN`, null where there is none, and `pid`. As text (JSON) and as structured content.
- `slow(seconds)` answers after that time.
- `crash()` ends the process at once with status 3, before any answer.

The first three are marked read-only and idempotent; `crash` is neither.

Eras, as seen with mcp 2.3.0: one process serves both, on both transports, and tells them apart by the request.
- Over HTTP the legacy era gets an `Mcp-Session-Id` and the modern one none. A Host that is not this machine's is
  refused with the status 421, a foreign Origin with 403.
- Over stdio the first request settles the era of the process: `initialize` makes it legacy, and modern requests are
  then refused with -32600; a request that carries the modern `_meta` makes it modern, and `initialize` is then refused
  with -32022. A `server/discover` without that `_meta` is answered -32601 and settles nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import sys
from typing import Mapping

import anyio
import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.types import CallToolResult, TextContent, ToolAnnotations

SAFE = ToolAnnotations(read_only_hint=True, idempotent_hint=True)

server = MCPServer("mcpeg-test-python", version="1.0.0", log_level="WARNING")


@server.tool(annotations=SAFE, structured_output=False)
async def echo(text: str) -> str:
    """Returns the text."""
    return text


@server.tool(annotations=SAFE)
async def whoami(context: Context) -> CallToolResult:
    """Says by their digests which credentials have arrived, and which process answers."""
    headers = context.headers or {}
    seen = {
        **digest("authorization", raw_header(headers, "authorization")),
        **digest("x_api_key", raw_header(headers, "x-api-key")),
        **digest("env", os.environb.get(b"MCPEG_TEST_TOKEN")),
        "pid": os.getpid(),
    }
    return CallToolResult(content=[TextContent(type="text", text=json.dumps(seen))], structured_content=seen)


@server.tool(annotations=SAFE, structured_output=False)
async def slow(seconds: float) -> str:
    """Answers after so many seconds."""
    await anyio.sleep(seconds)
    return f"slept {seconds:g} s"


@server.tool(annotations=ToolAnnotations(read_only_hint=False, idempotent_hint=False), structured_output=False)
async def crash() -> str:
    """Ends the process with status 3, without an answer."""
    os._exit(3)


def raw_header(headers: Mapping[str, str], name: str) -> bytes | None:
    """The bytes as they came: Starlette has read them as Latin-1."""
    value = headers.get(name)
    return None if value is None else value.encode("latin-1")


def digest(name: str, value: bytes | None) -> dict[str, str | int | None]:
    return {
        f"{name}_sha256": None if value is None else hashlib.sha256(value).hexdigest(),
        f"{name}_length": None if value is None else len(value),
    }


async def serve_http(port: int) -> None:
    listener = socket.create_server(("127.0.0.1", port))
    app = server.streamable_http_app(host="127.0.0.1")
    # It listens already: who connects before the loop below runs waits in the backlog.
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    await uvicorn.Server(config).serve(sockets=[listener])


def main() -> None:
    parser = argparse.ArgumentParser(description="An MCP server of both eras for mcpeg's tests.")
    parser.add_argument("transport", choices=["stdio", "http"])
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.transport == "stdio":
        server.run("stdio")
    else:
        anyio.run(serve_http, arguments.port)


if __name__ == "__main__":
    sys.exit(main())
