"""Uses what features_server.mjs has that a server and a client ask of each other, with the client of PyPI's `mcp` SDK, and prints what came of it
as one line of JSON with a member for each feature, as features_client.mjs does.

    python_features.py --era legacy|modern [--bearer-env NAME] unix PATH | http URL | stdio -- COMMAND ARGS...

The options are python_client.py's.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Awaitable, Callable

import anyio
from mcp import Client
from mcp.types import CallToolResult, CreateMessageResult, DiscoverResult, ElicitResult, ListRootsResult, Root, TextContent
from mcp.types.version import LATEST_MODERN_VERSION
from python_client import list_tools, parse_arguments, reasons, target

MODES = {"legacy": "legacy", "modern": LATEST_MODERN_VERSION, "auto": "auto"}


async def use(settings: argparse.Namespace) -> dict[str, Any]:
    mode = MODES[settings.era]
    callbacks = {"elicitation_callback": elicit, "sampling_callback": sample, "list_roots_callback": roots}
    async with Client(target(settings), mode=mode, read_timeout_seconds=settings.timeout, **callbacks) as client:
        if settings.era == "modern":
            # Pinned to a version the SDK asks the server nothing.
            client.session.adopt(DiscoverResult.model_validate(await client.session.send_discover(mode)))
        info = client.server_info
        report: dict[str, Any] = {"server": info and info.name, "protocol": client.protocol_version}
        await feature(report, "tools", lambda: sorted_tools(client))
        for name in ("ask", "sample", "both", "roots"):
            await feature(report, name, lambda: text_of(client, name))
        await feature(report, "progress", lambda: progress(client))
        await feature(report, "cancel", lambda: cancel(client))
        return report


async def feature(report: dict[str, Any], name: str, run: Callable[[], Awaitable[Any]]) -> None:
    try:
        report[name] = await run()
    except Exception as error:
        report[name] = f"error: {'; '.join(reasons(error))}"


async def sorted_tools(client: Client) -> list[str]:
    return sorted(await list_tools(client))


async def text_of(client: Client, name: str, **options: Any) -> str:
    result: CallToolResult = await client.call_tool(name, {}, **options)
    return ("error: " if result.is_error else "") + " ".join(getattr(part, "text", part.type) for part in result.content)


async def progress(client: Client) -> str:
    seen: list[str] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        seen.append(f"{progress:g}")

    answer = await text_of(client, "progress", progress_callback=note)
    await anyio.sleep(0.05)
    return f"{answer} {','.join(seen)}"


async def cancel(client: Client) -> int:
    """How many calls the server counts as cancelled when one is."""
    before = int(await text_of(client, "cancelled"))
    with anyio.move_on_after(0.3):
        await text_of(client, "wait")
    count = before
    for _ in range(60):
        await anyio.sleep(0.05)
        if (count := int(await text_of(client, "cancelled"))) != before:
            break
    return count - before


async def elicit(_context: Any, _params: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={"name": "Ada"})


async def sample(_context: Any, _params: Any) -> CreateMessageResult:
    return CreateMessageResult(role="assistant", model="m", content=TextContent(type="text", text="sampled"))


async def roots(_context: Any) -> ListRootsResult:
    return ListRootsResult(roots=[Root(uri="file:///root")])


def main() -> int:
    try:
        print(json.dumps(anyio.run(use, parse_arguments())))
    except Exception as error:
        print(f"python_features.py: {'; '.join(reasons(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
