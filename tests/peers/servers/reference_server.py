"""The server that the makers of the Python SDK put before the conformance suites, from the SDK's source, over both transports.

    reference_server.py FOLDER stdio
    reference_server.py FOLDER http [--port P]    0, the default, takes a free port; prints `listening on http://127.0.0.1:P/mcp`
    reference_server.py FOLDER fork SOCKET        prints `listening on SOCKET`
    python -S -E -c "$JOIN" SOCKET                what is spawned instead of `stdio`, see `fork`

FOLDER has the package `mcp_everything_server`. It speaks both eras, as `python_server.py` does, and keeps events for who comes back.

`fork`: the suites open a session for each scenario, and each has a process of its own behind mcpeg. A Python that loads the SDK takes most of
a second to start, on a busy machine so long that the suites give up. So one process that has loaded it waits at the socket; what is spawned is `JOIN`,
which hands its pipes over, and a fork serves on them. `JOIN` ends when the fork does.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys

import anyio
import uvicorn


async def serve_http(module, port: int) -> None:
    listener = socket.create_server(("127.0.0.1", port))
    store, retry = module.event_store, 100
    app = module.mcp.streamable_http_app(host="127.0.0.1", event_store=store, retry_interval=retry)
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    await uvicorn.Server(config).serve(sockets=[listener])


def serve_forks(module, path: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    print(f"listening on {path}", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        _, pipes, _, _ = socket.recv_fds(connection, 1, 3)
        if os.fork() == 0:
            for number, pipe in enumerate(pipes):
                os.dup2(pipe, number)
                os.close(pipe)
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            module.mcp.run("stdio")
            os._exit(0)
        for pipe in pipes:
            os.close(pipe)
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="The SDK's own server for the conformance suites.")
    parser.add_argument("folder")
    parser.add_argument("transport", choices=["stdio", "http", "fork"])
    parser.add_argument("socket", nargs="?")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.folder)
    from mcp_everything_server import server

    if arguments.transport == "stdio":
        server.mcp.run("stdio")
    elif arguments.transport == "fork":
        serve_forks(server, arguments.socket)
    else:
        anyio.run(serve_http, server, arguments.port)


if __name__ == "__main__":
    sys.exit(main())
