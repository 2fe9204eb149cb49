"""An MCP server on PyPI's `mcp` SDK that speaks the HTTP+SSE transport of 2024-11-05 alone.

    older_server.py [--port P]

Prints `listening on http://127.0.0.1:P/sse`. Tools: `echo(text)`, and `whoami()` with the length of `X-Api-Key`.
"""

import argparse
import json
import os
import socket

import anyio
import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.types import ToolAnnotations

SAFE = ToolAnnotations(read_only_hint=True)
server = MCPServer("older", log_level="ERROR")


@server.tool(annotations=SAFE, structured_output=False)
async def echo(text: str) -> str:
    return text


@server.tool(annotations=SAFE, structured_output=False)
async def whoami(context: Context) -> str:
    return json.dumps({"key": len((context.headers or {}).get("x-api-key", "")), "pid": os.getpid()})


@server.tool(structured_output=False)
async def ask(context: Context) -> str:
    await context.report_progress(1, 2)
    return "asked"


async def serve(port: int) -> None:
    listener = socket.create_server(("127.0.0.1", port))
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}/sse", flush=True)
    app = server.sse_app(host="127.0.0.1")
    config = uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=1)
    await uvicorn.Server(config).serve(sockets=[listener])


parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, default=0)
anyio.run(serve, parser.parse_args().port)
