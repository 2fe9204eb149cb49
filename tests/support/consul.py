"""The part of Consul's HTTP interface that a configuration is read from and written to, as its reference describes it; prints its port.

    consul.py [--token TOKEN]

`/v1/kv/KEY`: GET with `recurse` or `keys`, blocking by `index` and `wait`; PUT with `cas`; DELETE. Every answer to a read has `X-Consul-Index`; a
prefix without keys is a 404 with an index. It stands in for a Consul because no registry has one.
"""

import argparse
import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

parser = argparse.ArgumentParser()
parser.add_argument("--token")
options = parser.parse_args()

store = {}
index = 10
changed = threading.Condition()


def seconds(text):
    units = {"ms": 0.001, "s": 1, "m": 60}
    unit = next(unit for unit in units if text.endswith(unit))
    return float(text[: -len(unit)]) * units[unit]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def parts(self):
        url = urlsplit(self.path)
        return unquote(url.path).removeprefix("/v1/kv/"), parse_qs(url.query, keep_blank_values=True)

    def refused(self):
        if options.token and self.headers.get("X-Consul-Token") != options.token:
            self.say(403, b"Permission denied: token with AccessorID '' lacks permission 'key:read'")
            return True
        return False

    def do_GET(self):
        if self.refused():
            return
        key, query = self.parts()
        with changed:
            if "index" in query and int(query["index"][0]) >= index:
                known = index
                changed.wait_for(lambda: index != known, timeout=seconds(query.get("wait", ["5m"])[0]))
            found = {name: entry for name, entry in sorted(store.items()) if name.startswith(key)}
            now = index
        if "keys" in query:
            body = list(found)
        else:
            found = found if "recurse" in query else {name: entry for name, entry in found.items() if name == key}
            body = [{"Key": name, "Value": value, "ModifyIndex": at, "LockIndex": 0, "Flags": 0} for name, (value, at) in found.items()]
        self.say(200 if body else 404, json.dumps(body).encode() if body else b"", now)

    def do_PUT(self):
        global index
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.refused():
            return
        key, query = self.parts()
        with changed:
            at = store.get(key, (None, 0))[1]
            good = "cas" not in query or int(query["cas"][0]) == at
            if good:
                index += 1
                store[key] = (base64.b64encode(body).decode() or None, index)
                changed.notify_all()
        self.say(200, b"true" if good else b"false")

    def do_DELETE(self):
        global index
        if self.refused():
            return
        key, _ = self.parts()
        with changed:
            store.pop(key, None)
            index += 1
            changed.notify_all()
        self.say(200, b"true")

    def say(self, status, body, at=None):
        self.send_response(status)
        if at is not None:
            self.send_header("X-Consul-Index", str(at))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
print(server.server_port, flush=True)
server.serve_forever()
