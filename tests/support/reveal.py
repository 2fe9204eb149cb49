"""An MCP server over stdio, quick to start, that says the value of its variable TOKEN in each answer, and how that ends."""

import json
import os
import sys

token = os.environ.get("TOKEN", "")
for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    if message.get("method") == "initialize":
        info = {"name": "reveal", "version": "1"}
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": info}
    else:
        result = {"content": [{"type": "text", "text": token}], "number": token[-8:], "pid": os.getpid()}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
