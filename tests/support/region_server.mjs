// A modern MCP server on npm's `@modelcontextprotocol/server` whose tool wants an argument in a header as well. Run it where `node_modules` is
// found. It prints `listening on http://127.0.0.1:P/mcp`.
//
// Tool: `store(region, text)` returns the header `Mcp-Param-Region` as it came; `region` is marked with `x-mcp-header`.

import { createServer } from "node:http";
import { createMcpHandler, McpServer } from "@modelcontextprotocol/server";
import { toNodeHandler } from "@modelcontextprotocol/node";
import { z } from "zod";

const inputSchema = z.object({ region: z.string().meta({ "x-mcp-header": "Region" }), text: z.string() });

function newServer() {
  const server = new McpServer({ name: "region", version: "1.0.0" });
  server.registerTool("store", { description: "Stores.", inputSchema }, async (_arguments, context) => ({
    content: [{ type: "text", text: String(context.http?.req?.headers.get("mcp-param-region")) }],
  }));
  return server;
}

const http = createServer(toNodeHandler(createMcpHandler(newServer, { legacy: "reject" })));
http.listen(0, "127.0.0.1", () => console.log(`listening on http://127.0.0.1:${http.address().port}/mcp`));
