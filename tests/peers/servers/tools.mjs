// The tools of the two Node servers, and how they are told to serve. The tools are those of python_server.py, which
// describes them. Both npm SDKs take the same registration; where a request keeps its headers is theirs to say.

import { createHash } from "node:crypto";
import { createServer } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { z } from "zod";

const SAFE = { readOnlyHint: true, idempotentHint: true };

/**
 * Registers the tools.
 * @param server an McpServer of either npm SDK
 * @param header (context, name) => the value of a header of the HTTP request, or undefined
 */
export function registerTools(server, header) {
  server.registerTool(
    "echo",
    { description: "Returns the text.", inputSchema: z.object({ text: z.string() }), annotations: SAFE },
    async ({ text }) => said(text),
  );
  server.registerTool(
    "whoami",
    {
      description: "Says by their digests which credentials have arrived, and which process answers.",
      inputSchema: z.object({}),
      annotations: SAFE,
    },
    async (_arguments, context) => {
      const seen = {
        ...digest("authorization", header(context, "authorization"), "latin1"),
        ...digest("x_api_key", header(context, "x-api-key"), "latin1"),
        ...digest("env", process.env.MCPEG_TEST_TOKEN, "utf8"),
        pid: process.pid,
      };
      return { ...said(JSON.stringify(seen)), structuredContent: seen };
    },
  );
  server.registerTool(
    "slow",
    {
      description: "Answers after so many seconds.",
      inputSchema: z.object({ seconds: z.number() }),
      annotations: SAFE,
    },
    async ({ seconds }) => {
      await sleep(seconds * 1000);
      return said(`slept ${seconds} s`);
    },
  );
  server.registerTool(
    "crash",
    {
      description: "Ends the process with status 3, without an answer.",
      inputSchema: z.object({}),
      annotations: { readOnlyHint: false, idempotentHint: false },
    },
    async () => process.exit(3),
  );
}

/** Reads `stdio` or `http [--port P]`, and options of the server's own; ends the process with status 2 on a mistake. */
export function parseServerArguments(usage, extra = {}) {
  try {
    const { values, positionals } = parseArgs({
      options: { port: { type: "string", default: "0" }, ...extra },
      allowPositionals: true,
    });
    const port = Number(values.port);
    if (positionals.length === 1 && ["stdio", "http"].includes(positionals[0]) && Number.isInteger(port)) {
      return { ...values, transport: positionals[0], port };
    }
  } catch {
    // An unknown option: the usage says the rest.
  }
  console.error(`usage: ${usage}`);
  process.exit(2);
}

/** Serves `/mcp` on a loopback port and prints the line that says which. */
export function listen(port, handle) {
  const http = createServer((request, response) => {
    if (new URL(request.url, "http://localhost").pathname === "/mcp") return handle(request, response);
    response.writeHead(404).end();
  });
  http.listen(port, "127.0.0.1", () => console.log(`listening on http://127.0.0.1:${http.address().port}/mcp`));
}

const said = (text) => ({ content: [{ type: "text", text }] });

function digest(name, value, encoding) {
  if (value === undefined || value === null) return { [`${name}_sha256`]: null, [`${name}_length`]: null };
  const bytes = Buffer.from(value, encoding);
  return { [`${name}_sha256`]: createHash("sha256").update(bytes).digest("hex"), [`${name}_length`]: bytes.length };
}
