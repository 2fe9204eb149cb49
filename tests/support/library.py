"""An MCP server over stdio with things to be allowed, bounded and kept: rows, prompts, resources, and hints on how long answers last.

Both eras. Every line that it reads is appended to the file that is named as its first argument; the second, if there is one, is the
`ttlMs` of its lists and resources, the third their `cacheScope`.
"""

import json
import os
import sys
import threading
import time

log = sys.argv[1]
ttl = int(sys.argv[2]) if len(sys.argv) > 2 else 0
scope = sys.argv[3] if len(sys.argv) > 3 else "private"
lock = threading.Lock()
modern = "io.modelcontextprotocol/protocolVersion"

TEXT = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 100000}}, "additionalProperties": False}
TOOLS = [
    {"name": name, "description": f"The tool {name}.", "inputSchema": TEXT, "x-vendor": 12345678901234567890, "y": 1.0}
    for name in ["rows", "big", "slow", "stamp", "fail", "again", "change", "delete_all"]
]
PROMPTS = [{"name": "greet"}, {"name": "secret_greet"}]
RESOURCES = [{"uri": "doc://public/a", "name": "a"}, {"uri": "doc://private/b", "name": "b"}]
TEMPLATES = [{"uriTemplate": "doc://{folder}/{name}", "name": "docs"}, {"uriTemplate": "file:///{path}", "name": "files"}]


def send(message):
    with lock:
        print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def stamp():
    return f"{os.getpid()} {time.monotonic_ns()}"


def call(request, params):
    name, n = params["name"], params.get("arguments", {}).get("n", 0)
    result = {"content": [{"type": "text", "text": stamp()}]}
    match name:
        case "rows":
            rows = {"rows": [{"id": i, "big": 12345678901234567890} for i in range(n)], "of": "library"}
            result = {"content": [{"type": "text", "text": json.dumps(rows)}], "structuredContent": rows}
        case "big":
            result = {"content": [{"type": "text", "text": "x" * n}]}
        case "slow":
            time.sleep(n / 1000)
        case "leak":
            result = {"content": [{"type": "text", "text": os.environ["TOKEN"]}]}
        case "fail":
            result["isError"] = True
        case "again":
            result = {"resultType": "input_required", "inputRequests": {}, "requestState": stamp()}
        case "change":
            send({"method": "notifications/tools/list_changed"})
            send({"method": "notifications/resources/updated", "params": {"uri": "doc://public/a"}})
            send({"method": "notifications/resources/updated", "params": {"uri": "doc://private/b"}})
    send({"id": request, "result": {"resultType": "complete", **result}})


def answer(message):
    request, params = message.get("id"), message.get("params", {})
    hints = {"resultType": "complete", "ttlMs": ttl, "cacheScope": scope, "stamp": stamp()}
    match message.get("method"):
        case "initialize":
            info = {"name": "library", "version": "1"}
            capabilities = {"tools": {"listChanged": True}, "prompts": {}, "resources": {"subscribe": True}}
            version = params["protocolVersion"]
            send({"id": request, "result": {"protocolVersion": version, "capabilities": capabilities, "serverInfo": info}})
        case "server/discover" if modern in params.get("_meta", {}):
            capabilities = {"tools": {}, "prompts": {}, "resources": {}}
            send({"id": request, "result": {"supportedVersions": ["2026-07-28"], "capabilities": capabilities, **hints}})
        case "tools/list":
            send({"id": request, "result": {"tools": TOOLS, **hints}})
        case "prompts/list":
            send({"id": request, "result": {"prompts": PROMPTS, **hints}})
        case "resources/list":
            send({"id": request, "result": {"resources": RESOURCES, **hints}})
        case "resources/templates/list":
            send({"id": request, "result": {"resourceTemplates": TEMPLATES, **hints}})
        case "resources/read":
            contents = [{"uri": params["uri"], "text": stamp()}]
            send({"id": request, "result": {"contents": contents, **hints}})
        case "prompts/get":
            said = {"role": "user", "content": {"type": "text", "text": params["name"]}}
            send({"id": request, "result": {"messages": [said], "resultType": "complete"}})
        case "tools/call":
            threading.Thread(target=call, args=(request, params), daemon=True).start()
        case method if request is not None and method is not None:
            send({"id": request, "error": {"code": -32601, "message": f"no {method}"}})


for line in sys.stdin:
    with open(log, "a", encoding="utf-8") as lines:
        lines.write(line)
    answer(json.loads(line))
