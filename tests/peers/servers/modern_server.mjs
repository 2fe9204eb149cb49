// An MCP server on npm's `@modelcontextprotocol/server`: the modern era (2026-07-28), and the legacy one as well.
//
//   modern_server.mjs stdio [--strict]
//   modern_server.mjs http [--port P] [--strict]    0, the default, takes a free port; prints `listening on http://...`
//
// Tools: see python_server.py. `--strict` refuses the legacy era: `initialize` is answered with the error -32022, over
// HTTP with the status 400. Without it the legacy era is served too: over HTTP without sessions (GET is 405), over
// stdio once `initialize` has come, even after a `server/discover`. A `server/discover` that lacks the modern `_meta`
// counts as legacy and is answered -32601. Neither Host nor Origin is checked.

import { createMcpHandler, McpServer } from "@modelcontextprotocol/server";
import { serveStdio } from "@modelcontextprotocol/server/stdio";
import { toNodeHandler } from "@modelcontextprotocol/node";
import { listen, parseServerArguments, registerTools } from "./tools.mjs";

const settings = parseServerArguments("modern_server.mjs stdio | http [--port P] [--strict]", {
  strict: { type: "boolean", default: false },
});
if (settings.transport === "stdio") {
  serveStdio(newServer, { legacy: settings.strict ? "reject" : "serve" });
} else {
  const handler = createMcpHandler(newServer, { legacy: settings.strict ? "reject" : "stateless" });
  listen(settings.port, toNodeHandler(handler));
}

function newServer() {
  const server = new McpServer({ name: "mcpeg-test-modern", version: "1.0.0" });
  registerTools(server, (context, name) => context.http?.req?.headers.get(name));
  return server;
}
