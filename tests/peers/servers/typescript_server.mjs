// An MCP server on npm's `@modelcontextprotocol/sdk`: an upstream that knows the legacy era only.
//
//   typescript_server.mjs stdio
//   typescript_server.mjs http [--port P]    0, the default, takes a free port; prints `listening on http://...`
//
// Tools: see python_server.py. Over HTTP each `initialize` opens a session of its own (`Mcp-Session-Id`); a request
// with an unknown session is answered 404, which is what a client sees after a restart, and one with none 400. Neither
// Host nor Origin is checked.

import { randomUUID } from "node:crypto";
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { StdioServerTransport } from "@modelcontextprotocol/sdk/server/stdio.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";
import { listen, parseServerArguments, registerTools } from "./tools.mjs";

const settings = parseServerArguments("typescript_server.mjs stdio | http [--port P]");
if (settings.transport === "stdio") {
  await newServer().connect(new StdioServerTransport());
} else {
  const sessions = new Map();
  listen(settings.port, (request, response) => serveSession(sessions, request, response));
}

function newServer() {
  const server = new McpServer({ name: "mcpeg-test-typescript", version: "1.0.0" });
  registerTools(server, (context, name) => context.requestInfo?.headers[name]);
  return server;
}

async function serveSession(sessions, request, response) {
  const id = request.headers["mcp-session-id"];
  if (id !== undefined && !sessions.has(id)) {
    return refuse(response, 404, "Session not found");
  }
  // Without a session the transport itself refuses everything but `initialize`.
  const transport = sessions.get(id) ?? (await openSession(sessions));
  await transport.handleRequest(request, response);
}

async function openSession(sessions) {
  const transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: randomUUID,
    onsessioninitialized: (id) => sessions.set(id, transport),
  });
  transport.onclose = () => sessions.delete(transport.sessionId);
  await newServer().connect(transport);
  return transport;
}

function refuse(response, status, message) {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(JSON.stringify({ jsonrpc: "2.0", error: { code: -32001, message }, id: null }));
}
