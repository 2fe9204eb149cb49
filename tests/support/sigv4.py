#!/usr/bin/env python3
"""Checks the login that Vault's AWS method is sent, by AWS's rules for Signature Version 4, with nothing but the standard library.

    sigv4.py ACCESS_KEY_ID SECRET_ACCESS_KEY SESSION_TOKEN REGION HOST SERVER_ID < login.json

The rules: docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html, and what Vault asks of the request:
developer.hashicorp.com/vault/api-docs/auth/aws#login. Ends with status 0, or with 1 and the rule that is broken.
"""

import base64
import datetime
import hashlib
import hmac
import json
import sys
import urllib.parse


def must_be(what: str, found: object, expected: object) -> None:
    if found != expected:
        sys.exit(f"sigv4.py: {what}: {found!r} and not {expected!r}")


def keyed(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


access_key_id, secret, session_token, region, host, server_id = sys.argv[1:]
login = json.load(sys.stdin)
must_be("method", login["iam_http_request_method"], "POST")
url = urllib.parse.urlsplit(base64.b64decode(login["iam_request_url"], validate=True).decode())
must_be("URL", (url.scheme, url.netloc, url.path, url.query), ("https", host, "/", ""))
body = base64.b64decode(login["iam_request_body"], validate=True)
must_be("body", urllib.parse.parse_qs(body.decode()), {"Action": ["GetCallerIdentity"], "Version": ["2011-06-15"]})
written = json.loads(base64.b64decode(login["iam_request_headers"], validate=True))
headers = {name.lower(): ",".join(" ".join(value.split()) for value in values) for name, values in written.items()}
must_be("host", headers["host"], host)
must_be("session token", headers["x-amz-security-token"], session_token)
must_be("server id", headers["x-vault-aws-iam-server-id"], server_id)

algorithm, _, rest = headers["authorization"].partition(" ")
parts = dict(part.strip().split("=", 1) for part in rest.split(","))
time = headers["x-amz-date"]
age = datetime.datetime.now(datetime.timezone.utc) - datetime.datetime.strptime(time + "+0000", "%Y%m%dT%H%M%SZ%z")
must_be("signed less than a minute ago", abs(age.total_seconds()) < 60, True)
scope = f"{time[:8]}/{region}/sts/aws4_request"
must_be("algorithm", algorithm, "AWS4-HMAC-SHA256")
must_be("credential", parts["Credential"], f"{access_key_id}/{scope}")
signed = parts["SignedHeaders"].split(";")
must_be("order of the signed headers", signed, sorted(signed))
must_be("signed headers", set(headers) - {"authorization"}, set(signed))

canonical_headers = "".join(f"{name}:{headers[name]}\n" for name in signed)
canonical = "\n".join(["POST", "/", "", canonical_headers, ";".join(signed), hashlib.sha256(body).hexdigest()])
to_sign = "\n".join(["AWS4-HMAC-SHA256", time, scope, hashlib.sha256(canonical.encode()).hexdigest()])
key = ("AWS4" + secret).encode()
for part in scope.split("/"):
    key = keyed(key, part)
must_be("signature", parts["Signature"], keyed(key, to_sign).hex())
