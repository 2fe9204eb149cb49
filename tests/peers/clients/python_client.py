"""Drives the client of PyPI's `mcp` SDK against a server and prints what it saw as one line of JSON.

    python_client.py [OPTIONS] stdio -- COMMAND ARGS...    spawns the command and speaks over its stdin and stdout
    python_client.py [OPTIONS] unix PATH                   connects to a Unix socket; one JSON message a line
    python_client.py [OPTIONS] http URL                    streamable HTTP

    --call TOOL          after listing the tools, call this one ...
    --args JSON          ... with these arguments (default {}) ...
    --repeat N           ... so many times (default 1) ...
    --parallel N         ... with so many calls in flight (default 1)
    --era ERA            auto (default): discover, else initialize; legacy: initialize; modern: 2026-07-28 or fail
    --timeout SECONDS    for each request (default 30)
    --env NAME           stdio: hand this variable on to the command, which otherwise gets only what the SDK hands on
                         (HOME, LOGNAME, PATH, SHELL, TERM, USER); repeatable
    --bearer-env NAME    http: send the value of this variable as the bearer token

The line, the same for the clients of the three SDKs:

    {"server": {"name": ..., "version": ...}, "protocol": "2025-11-25", "tools": ["echo", ...], "result": {...},
     "calls": 3, "failed": 0, "distinct_results": [{...}], "errors": []}

`result` is the last one that came, or null; `distinct_results` are all that differ, in the order of their first
arrival; `errors` are the first five. A call has failed when it raised or when its result says `isError`. Exit status:
0 when everything succeeded, 1 with the line when a call failed, 1 with a message on standard error and no line when the
connection did not come about, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from typing import Any, AsyncIterator

import anyio
import httpx2
from anyio.streams.buffered import BufferedByteReceiveStream
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp.types import CallToolResult, DiscoverResult, jsonrpc_message_adapter
from mcp.types.version import LATEST_MODERN_VERSION

MAX_LINE = 64 * 1024 * 1024
MAX_ERRORS = 5


def main() -> int:
    settings = parse_arguments()
    try:
        seen = anyio.run(drive, settings)
    except Exception as error:
        print(f"python_client.py: {'; '.join(reasons(error))}", file=sys.stderr)
        return 1
    print(json.dumps(seen))
    if seen["failed"]:
        print(f"python_client.py: {seen['failed']} of {seen['calls']} calls failed", file=sys.stderr)
    return 1 if seen["failed"] else 0


async def drive(settings: argparse.Namespace) -> dict[str, Any]:
    mode = {"auto": "auto", "legacy": "legacy", "modern": LATEST_MODERN_VERSION}[settings.era]
    async with Client(target(settings), mode=mode, read_timeout_seconds=settings.timeout) as client:
        if settings.era == "modern":
            # Pinned to a version the SDK asks the server nothing; asking is what says that the era is really spoken.
            answer = await client.session.send_discover(mode)
            client.session.adopt(DiscoverResult.model_validate(answer))
        info = client.server_info
        seen: dict[str, Any] = {
            "server": info and {"name": info.name, "version": info.version},
            "protocol": client.protocol_version,
            "tools": await list_tools(client),
        }
        return seen | await call_many(client, settings)


def target(settings: argparse.Namespace) -> Any:
    match settings.transport:
        case "stdio":
            env = {name: os.environ[name] for name in settings.env}
            return StdioServerParameters(command=settings.target[0], args=settings.target[1:], env=env)
        case "unix":
            return unix_transport(settings.target[0])
        case _:
            token = settings.bearer_env and os.environ[settings.bearer_env]
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            http = httpx2.AsyncClient(headers=headers, timeout=settings.timeout)
            return streamable_http_client(settings.target[0], http_client=http)


@contextlib.asynccontextmanager
async def unix_transport(path: str) -> AsyncIterator[tuple[Any, Any]]:
    """The SDK's pair of streams over a Unix socket, framed as stdio is: one JSON message a line."""
    connection = await anyio.connect_unix(path)
    to_session, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outgoing, from_session = anyio.create_memory_object_stream[SessionMessage](0)

    async def receive() -> None:
        lines = BufferedByteReceiveStream(connection)
        async with to_session:
            with contextlib.suppress(anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
                while True:
                    line = await lines.receive_until(b"\n", MAX_LINE)
                    try:
                        message = SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
                    except ValueError as error:
                        await to_session.send(error)
                    else:
                        await to_session.send(message)

    async def send() -> None:
        async with from_session:
            async for item in from_session:
                text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
                try:
                    await connection.send(text.encode() + b"\n")
                except anyio.BrokenResourceError:  # the peer is gone: `receive` tells the session
                    return

    async with connection, anyio.create_task_group() as tasks:
        tasks.start_soon(receive)
        tasks.start_soon(send)
        yield incoming, outgoing
        tasks.cancel_scope.cancel()


async def list_tools(client: Client) -> list[str]:
    names: list[str] = []
    cursor = None
    while True:
        page = await client.list_tools(cursor=cursor)
        names += [tool.name for tool in page.tools]
        if (cursor := page.next_cursor) is None:
            return names


async def call_many(client: Client, settings: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = {"result": None, "calls": 0, "failed": 0, "distinct_results": [], "errors": []}

    def failed(reason: str) -> None:
        report["failed"] += 1
        if len(report["errors"]) < MAX_ERRORS:
            report["errors"].append(reason)

    async def worker() -> None:
        while report["calls"] < settings.repeat:
            report["calls"] += 1
            try:
                answer: CallToolResult = await client.call_tool(settings.call, settings.args)
            except Exception as error:
                failed("; ".join(reasons(error)))
                continue
            result = answer.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"meta"})
            report["result"] = result
            if result not in report["distinct_results"]:
                report["distinct_results"].append(result)
            if answer.is_error:
                failed(" ".join(getattr(part, "text", part.type) for part in answer.content))

    if settings.call:
        async with anyio.create_task_group() as tasks:
            for _ in range(settings.parallel):
                tasks.start_soon(worker)
    return report


def reasons(error: BaseException) -> list[str]:
    """The errors inside of a group, each as one line."""
    if isinstance(error, BaseExceptionGroup):
        return [reason for inner in error.exceptions for reason in reasons(inner)]
    code = f" ({error.code})" if isinstance(error, MCPError) else ""
    return [" ".join(f"{type(error).__name__}: {error}{code}".split())]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Drives PyPI's mcp client against a server.")
    parser.add_argument("--call", metavar="TOOL")
    parser.add_argument("--args", metavar="JSON", type=json.loads, default={})
    parser.add_argument("--repeat", metavar="N", type=int, default=1)
    parser.add_argument("--parallel", metavar="N", type=int, default=1)
    parser.add_argument("--era", choices=["auto", "legacy", "modern"], default="auto")
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=30)
    parser.add_argument("--env", metavar="NAME", action="append", default=[])
    parser.add_argument("--bearer-env", metavar="NAME")
    parser.add_argument("transport", choices=["stdio", "unix", "http"])
    parser.add_argument("target", nargs="+", metavar="-- COMMAND ARGS... | PATH | URL")
    settings = parser.parse_args()
    if settings.transport != "stdio" and len(settings.target) != 1:
        parser.error(f"{settings.transport} takes one {'path' if settings.transport == 'unix' else 'URL'}")
    for name in [*settings.env, *filter(None, [settings.bearer_env])]:
        if name not in os.environ:
            parser.error(f"the variable {name} is not set")
    return settings


if __name__ == "__main__":
    sys.exit(main())
