"""An MCP server over stdio that does what the tools of the real ones do not: it asks, tells how it goes, and keeps subscriptions.

Both eras. Every line that it reads is appended to the file that is named as its argument.
"""

import json
import sys
import threading
import time

lock = threading.Lock()
asked = {}


def send(message):
    with lock:
        print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def call(request, params):
    meta = params.get("_meta", {})
    match params["name"]:
        case "progress":
            send({"method": "notifications/progress", "params": {"progressToken": meta["progressToken"], "progress": 1}})
            send({"method": "notifications/message", "params": {"level": "info", "data": "at work"}})
        case "ask":
            asked["q1"] = request
            return send({"id": "q1", "method": "elicitation/create", "params": {"message": "?"}})
        case "change":
            send({"method": "notifications/tools/list_changed"})
        case "later":
            send({"method": "notifications/message", "params": {"level": "info", "data": "later"}})
            time.sleep(float(params["arguments"]["seconds"]))
        case "never":
            return None
    send({"id": request, "result": {"content": [{"type": "text", "text": params["name"]}], "big": 12345678901234567890}})


def answer(message):
    request, params = message.get("id"), message.get("params", {})
    match message.get("method"):
        case None:
            send({"id": asked.pop(request), "result": {"content": [], "answer": message["result"]}})
        case "initialize":
            info = {"name": "scripted", "version": "1"}
            version = params["protocolVersion"]
            send({"id": request, "result": {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}})
        case "server/discover":
            meta = {"io.modelcontextprotocol/serverInfo": {"name": "scripted", "version": "1"}}
            found = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {"listChanged": True}}, "_meta": meta}
            send({"id": request, "result": {"resultType": "complete", "ttlMs": 0, "cacheScope": "private", **found}})
        case "tools/call":
            threading.Thread(target=call, args=(request, params), daemon=True).start()
        case "subscriptions/listen":
            mark = {"_meta": {"io.modelcontextprotocol/subscriptionId": request}}
            send({"method": "notifications/subscriptions/acknowledged", "params": mark})
            send({"method": "notifications/tools/list_changed", "params": mark})
        case method if request is not None:
            send({"id": request, "error": {"code": -32601, "message": f"no {method}"}})


for line in sys.stdin:
    with open(sys.argv[1], "a", encoding="utf-8") as log:
        log.write(line)
    answer(json.loads(line))
