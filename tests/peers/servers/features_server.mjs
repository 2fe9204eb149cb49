// An MCP server with everything that the bridge between the eras has to carry, on either npm SDK; each knows its own era only.
//
//   features_server.mjs legacy|modern stdio
//   features_server.mjs legacy|modern http [--port P]    0, the default, takes a free port; prints `listening on http://...`
//
// Tools: `ask` (elicitation), `sample`, `roots`, `both` (elicitation, then sampling), `progress` (three notifications), `log` (one line at
// `info`), `touch` (tells that the tools have changed, and the resource `test://one`), `wait` (until it is cancelled), `cancelled` (how often that
// was). The prompt `greet` completes its argument; the resources `test://one` and `test://item/{id}`.

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import * as legacySdk from "@modelcontextprotocol/sdk/server/mcp.js";
import { StdioServerTransport } from "@modelcontextprotocol/sdk/server/stdio.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";
import { completable as legacyCompletable } from "@modelcontextprotocol/sdk/server/completable.js";
import * as modernSdk from "@modelcontextprotocol/server";
import { serveStdio } from "@modelcontextprotocol/server/stdio";
import { toNodeHandler } from "@modelcontextprotocol/node";
import { listen, parseServerArguments } from "./tools.mjs";

const era = process.argv[2];
process.argv.splice(2, 1);
if (!["legacy", "modern"].includes(era)) throw new Error("usage: features_server.mjs legacy|modern stdio | http [--port P]");
const settings = parseServerArguments("features_server.mjs legacy|modern stdio | http [--port P]");

const said = (text) => ({ content: [{ type: "text", text }] });
const NAME = z.object({ name: z.string() });
const ASKED = { message: "Who are you?", requestedSchema: { type: "object", properties: { name: { type: "string" } }, required: ["name"] } };
const PROMPTED = { messages: [{ role: "user", content: { type: "text", text: "hi" } }], maxTokens: 10 };
const CAPABILITIES = { tools: { listChanged: true }, prompts: {}, resources: { subscribe: true }, logging: {}, completions: {} };
let cancelled = 0;

function untilCancelled(signal) {
  return new Promise((resolve) => {
    const over = () => {
      cancelled += 1;
      resolve(said("cancelled"));
    };
    if (signal.aborted) over();
    signal.addEventListener("abort", over);
  });
}

function registerShared(server, completable, sdk) {
  server.registerTool("cancelled", { description: "How often it was.", inputSchema: z.object({}) }, async () => said(`${cancelled}`));
  server.registerPrompt(
    "greet",
    { description: "Greets.", argsSchema: completable === legacyCompletable ? { name: completable(z.string(), complete) } : z.object({ name: completable(z.string(), complete) }) },
    ({ name }) => ({ messages: [{ role: "user", content: { type: "text", text: `Hello, ${name}` } }] }),
  );
  server.registerResource("one", "test://one", { mimeType: "text/plain" }, async (uri) => ({ contents: [{ uri: uri.href, text: "the one" }] }));
  server.registerResource("item", new sdk.ResourceTemplate("test://item/{id}", { list: undefined }), {}, async (uri, { id }) => ({
    contents: [{ uri: uri.href, text: `item ${id}` }],
  }));
}

const complete = (value) => ["anna", "berta"].filter((name) => name.startsWith(value));

function legacyServer() {
  const server = new legacySdk.McpServer({ name: "features-legacy", version: "1.0.0" }, { capabilities: CAPABILITIES, instructions: "be kind" });
  const tool = (name, run) => server.registerTool(name, { description: `The tool ${name}.`, inputSchema: {} }, (_arguments, extra) => run(extra));
  const ask = async (extra) => {
    const { action, content } = await server.server.elicitInput(ASKED, { relatedRequestId: extra.requestId });
    return `${action} ${content?.name}`;
  };
  const sample = async (extra) => (await server.server.createMessage(PROMPTED, { relatedRequestId: extra.requestId })).content.text;
  tool("ask", async (extra) => said(await ask(extra)));
  tool("sample", async (extra) => said(await sample(extra)));
  tool("both", async (extra) => said(`${await ask(extra)}, ${await sample(extra)}`));
  tool("roots", async (extra) => said((await server.server.listRoots(undefined, { relatedRequestId: extra.requestId })).roots.map((root) => root.uri).join()));
  tool("progress", async (extra) => {
    for (let progress = 1; progress <= 3; progress += 1) {
      // A client that reads several messages at once may have forgotten the token when it comes to them.
      await sleep(50);
      await extra.sendNotification({ method: "notifications/progress", params: { progressToken: extra._meta?.progressToken, progress, total: 3 } });
    }
    await sleep(500);
    return said("done");
  });
  tool("log", async (extra) => {
    await extra.sendNotification({ method: "notifications/message", params: { level: "info", data: "a line of the log" } });
    return said("logged");
  });
  tool("touch", async () => {
    server.sendToolListChanged();
    await server.server.sendResourceUpdated({ uri: "test://one" });
    return said("touched");
  });
  tool("wait", async (extra) => untilCancelled(extra.signal));
  registerShared(server, legacyCompletable, legacySdk);
  // What the SDK leaves to the server.
  server.server.setRequestHandler(z.object({ method: z.literal("resources/subscribe"), params: z.object({ uri: z.string() }) }), async () => ({}));
  server.server.setRequestHandler(z.object({ method: z.literal("resources/unsubscribe"), params: z.object({ uri: z.string() }) }), async () => ({}));
  return server;
}

let notify;

function modernServer() {
  const { inputRequired, acceptedContent, inputResponse } = modernSdk;
  const server = new modernSdk.McpServer({ name: "features-modern", version: "1.0.0" }, { capabilities: CAPABILITIES, instructions: "be kind" });
  const tool = (name, run) => server.registerTool(name, { description: `The tool ${name}.`, inputSchema: z.object({}) }, (_arguments, context) => run(context));
  const wanted = (context, key) => context.mcpReq.inputResponses?.[key];
  tool("ask", async (context) => {
    const answer = wanted(context, "who");
    if (!answer) return inputRequired({ inputRequests: { who: inputRequired.elicit(ASKED) }, requestState: "asked \"once\"" });
    return said(`${answer.action} ${answer.content?.name}${context.mcpReq.requestState() === "asked \"once\"" ? "" : " without its state"}`);
  });
  tool("sample", async (context) => {
    const answer = wanted(context, "sample");
    if (!answer) return inputRequired({ inputRequests: { sample: inputRequired.createMessage(PROMPTED) } });
    return said(answer.content.text);
  });
  tool("both", async (context) => {
    const state = JSON.parse(context.mcpReq.requestState() ?? "{}");
    const who = wanted(context, "who");
    if (who) state.who = `${who.action} ${who.content?.name}`;
    const sample = wanted(context, "sample");
    if (!state.who) return inputRequired({ inputRequests: { who: inputRequired.elicit(ASKED) } });
    if (!sample) return inputRequired({ inputRequests: { sample: inputRequired.createMessage(PROMPTED) }, requestState: JSON.stringify(state) });
    return said(`${state.who}, ${sample.content.text}`);
  });
  tool("roots", async (context) => {
    const answer = wanted(context, "roots");
    if (!answer) return inputRequired({ inputRequests: { roots: inputRequired.listRoots() } });
    return said(answer.roots.map((root) => root.uri).join());
  });
  tool("progress", async (context) => {
    for (let progress = 1; progress <= 3; progress += 1) {
      await sleep(50);
      await context.mcpReq.notify({ method: "notifications/progress", params: { progressToken: context.mcpReq._meta?.progressToken, progress, total: 3 } });
    }
    await sleep(500);
    return said("done");
  });
  tool("log", async (context) => {
    await context.mcpReq.log("info", "a line of the log");
    return said("logged");
  });
  tool("touch", async () => {
    if (notify) {
      notify.toolsChanged();
      notify.resourceUpdated("test://one");
    } else {
      server.sendToolListChanged();
      await server.server.sendResourceUpdated({ uri: "test://one" });
    }
    return said("touched");
  });
  tool("wait", async (context) => untilCancelled(context.mcpReq.signal));
  registerShared(server, modernSdk.completable, modernSdk);
  return server;
}

if (era === "legacy" && settings.transport === "stdio") {
  await legacyServer().connect(new StdioServerTransport());
} else if (era === "legacy") {
  const sessions = new Map();
  listen(settings.port, async (request, response) => {
    const id = request.headers["mcp-session-id"];
    if (id !== undefined && !sessions.has(id)) return response.writeHead(404).end();
    let transport = sessions.get(id);
    if (!transport) {
      transport = new StreamableHTTPServerTransport({ sessionIdGenerator: randomUUID, onsessioninitialized: (id) => sessions.set(id, transport) });
      await legacyServer().connect(transport);
    }
    await transport.handleRequest(request, response);
  });
} else if (settings.transport === "stdio") {
  serveStdio(modernServer, { legacy: "reject" });
} else {
  const handler = modernSdk.createMcpHandler(modernServer, { legacy: "reject" });
  notify = handler.notify;
  listen(settings.port, toNodeHandler(handler));
}
