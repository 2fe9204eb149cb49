"""An MCP server over stdio that shows what a rotation does to it. Both eras.

    rotating.py FOLDER [--slow-start SECONDS]

Its secret is the variable TOKEN. A TOKEN that begins with `bad` makes it end with status 9 before its first word. Each line that it reads
is appended to FOLDER/PID. Tools: `who` (TOKEN and pid), `sleep` (answers after `seconds`), `ask` (answers with what the client said to an
elicitation, or to the request of the id `q` that it always has), and one that is named as TOKEN says after a colon: `one:extra` has `extra`.
After `initialized` it asks for the client's roots, if it has any, under the id 1.
"""

import json
import os
import sys
import threading
import time

folder = sys.argv[1]
token = os.environ.get("TOKEN", "")
if token.startswith("bad"):
    sys.exit(9)
if "--slow-start" in sys.argv:
    time.sleep(float(sys.argv[-1]))
lock = threading.Lock()
asked = {}
roots = False


def send(message):
    with lock:
        print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def said(text):
    return {"content": [{"type": "text", "text": text}]}


def call(request, params):
    arguments = params.get("arguments", {})
    match params["name"]:
        case "who":
            send({"id": request, "result": said(f"{token} {os.getpid()}")})
        case "sleep":
            time.sleep(arguments["seconds"])
            send({"id": request, "result": said(f"{token} {os.getpid()}")})
        case "ask":
            asked["q"] = request
            send({"id": "q", "method": "elicitation/create", "params": {"message": token}})
        case "die":
            os._exit(3)
        case name:
            send({"id": request, "error": {"code": -32602, "message": f"no {name}"}})


def tools():
    safe = {"readOnlyHint": True}
    named = [{"name": "who", "inputSchema": {"type": "object"}, "annotations": safe}]
    named += [{"name": name, "inputSchema": {"type": "object"}} for name in ["sleep", "ask", "die"]]
    named += [{"name": name, "inputSchema": {"type": "object"}} for name in token.split(":")[1:]]
    return named


def answer(message):
    global roots
    request, params = message.get("id"), message.get("params", {})
    match message.get("method"):
        case None:
            if request in asked:
                send({"id": asked.pop(request), "result": {**said(token), "said": message.get("result")}})
        case "initialize":
            roots = "roots" in params["capabilities"]
            capabilities = {"tools": {"listChanged": True}, "logging": {}, "resources": {"subscribe": True}}
            info = {"name": "rotating", "version": "1"}
            version = params["protocolVersion"]
            send({"id": request, "result": {"protocolVersion": version, "capabilities": capabilities, "serverInfo": info}})
        case "notifications/initialized":
            if roots:
                send({"id": 1, "method": "roots/list"})
        case "server/discover":
            send({"id": request, "result": {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}})
        case "tools/list":
            # How long it may be kept says something to a client of the modern era.
            send({"id": request, "result": {"tools": tools(), "ttlMs": 60000, "cacheScope": "public"}})
        case "tools/call":
            threading.Thread(target=call, args=(request, params), daemon=True).start()
        case "logging/setLevel" | "resources/subscribe" | "resources/unsubscribe":
            send({"id": request, "result": {}})
        case "subscriptions/listen":
            mark = {"_meta": {"io.modelcontextprotocol/subscriptionId": request}}
            send({"method": "notifications/subscriptions/acknowledged", "params": mark})
        case method if request is not None:
            send({"id": request, "error": {"code": -32601, "message": f"no {method}"}})


for line in sys.stdin:
    with open(f"{folder}/{os.getpid()}", "a", encoding="utf-8") as log:
        log.write(line)
    answer(json.loads(line))
