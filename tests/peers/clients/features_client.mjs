// Uses everything that features_server.mjs has, with the client of either npm SDK, and prints what came of it as one line of JSON.
//
//   features_client.mjs legacy|modern unix PATH | http URL | stdio COMMAND ARGS...
//
// `MCPEG_TEST_PREFIX` stands before the names of tools and prompts; the token for HTTP is in `MCPEG_TEST_TOKEN`.
// The line has a member for each feature: the text of the tool, or what was received; a text that begins with `error:` where it failed.

import { setTimeout as sleep } from "node:timers/promises";
import * as legacySdk from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport as LegacyStdio } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport as LegacyHttp } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import * as legacyTypes from "@modelcontextprotocol/sdk/types.js";
import * as modernSdk from "@modelcontextprotocol/client";
import { StdioClientTransport as ModernStdio } from "@modelcontextprotocol/client/stdio";
import { UnixClientTransport } from "./unix_transport.mjs";

const [era, transport, target, ...more] = process.argv.slice(2);
const prefix = process.env.MCPEG_TEST_PREFIX ?? "";
const modern = era === "modern";
const token = process.env.MCPEG_TEST_TOKEN;
const headers = token ? { requestInit: { headers: { authorization: `Bearer ${token}` } } } : {};
const capabilities = { elicitation: { form: {} }, sampling: {}, roots: {} };
const options = modern ? { capabilities, versionNegotiation: { mode: { pin: "2026-07-28" } } } : { capabilities };
const client = new (modern ? modernSdk : legacySdk).Client({ name: "features", version: "1.0.0" }, options);
const told = { logs: [], lists: 0, updates: [] };

const handlers = {
  "elicitation/create": [legacyTypes.ElicitRequestSchema, () => ({ action: "accept", content: { name: "Ada" } })],
  "sampling/createMessage": [legacyTypes.CreateMessageRequestSchema, () => ({ role: "assistant", model: "m", content: { type: "text", text: "sampled" } })],
  "roots/list": [legacyTypes.ListRootsRequestSchema, () => ({ roots: [{ uri: "file:///root" }] })],
};
for (const [method, [schema, handle]] of Object.entries(handlers)) client.setRequestHandler(modern ? method : schema, handle);
const listeners = {
  "notifications/message": [legacyTypes.LoggingMessageNotificationSchema, ({ params }) => told.logs.push(params.data)],
  "notifications/tools/list_changed": [legacyTypes.ToolListChangedNotificationSchema, () => (told.lists += 1)],
  "notifications/resources/updated": [legacyTypes.ResourceUpdatedNotificationSchema, ({ params }) => told.updates.push(params.uri)],
};
for (const [method, [schema, handle]] of Object.entries(listeners)) client.setNotificationHandler(modern ? method : schema, handle);

const report = {};
const unhandled = [];
client.onerror = (error) => unhandled.push(String(error.message));
const text = (result) => (result.isError ? "error: " : "") + result.content.map((part) => part.text).join(" ");
const call = (name, options, meta) => {
  const params = { name: prefix + name, arguments: {}, ...(meta && { _meta: meta }) };
  return modern ? client.callTool(params, options) : client.callTool(params, undefined, options);
};

async function feature(name, run) {
  try {
    report[name] = await run();
  } catch (error) {
    report[name] = `error: ${error.code ?? ""} ${error.message}`;
  }
}

async function until(holds) {
  for (let tries = 0; tries < 100 && !holds(); tries += 1) await sleep(50);
}

const transports = {
  unix: () => new UnixClientTransport(target),
  http: () => new (modern ? modernSdk.StreamableHTTPClientTransport : LegacyHttp)(new URL(target), headers),
  stdio: () => new (modern ? ModernStdio : LegacyStdio)({ command: target, args: more }),
};
await client.connect(transports[transport]());
if (modern) await feature("discover", async () => (await client.discover?.()) && "discovered");
report.server = client.getServerVersion()?.name;
report.instructions = client.getInstructions();
report.capabilities = Object.keys(client.getServerCapabilities() ?? {}).sort();
await feature("tools", async () => (await client.listTools()).tools.map((tool) => tool.name).sort());
const list = await client.listResources().catch(() => ({ resources: [] }));
// An aggregate has several: the one of the service whose tools are used.
const service = prefix.replace(/__$/, "");
const one = list.resources.find(({ name, uri }) => name === "one" && uri.includes(service))?.uri ?? "test://one";
for (const name of ["ask", "sample", "both", "roots"]) await feature(name, async () => text(await call(name)));
await feature("progress", async () => {
  const seen = [];
  const answer = text(await call("progress", { onprogress: ({ progress }) => seen.push(progress) }));
  await sleep(50);
  return `${answer} ${seen}`;
});
await feature("log", async () => {
  if (!modern) await client.setLoggingLevel("info");
  const answer = text(await call("log", undefined, modern && { "io.modelcontextprotocol/logLevel": "info" }));
  await until(() => told.logs.length > 0);
  return `${answer} ${told.logs}`;
});
await feature("prompt", async () => (await client.getPrompt({ name: `${prefix}greet`, arguments: { name: "Ada" } })).messages[0].content.text);
await feature("complete", async () => {
  const ref = { type: "ref/prompt", name: `${prefix}greet` };
  return (await client.complete({ ref, argument: { name: "name", value: "b" } })).completion.values.join();
});
await feature("read", async () => (await client.readResource({ uri: one })).contents[0].text);
await feature("template", async () => {
  const { resourceTemplates } = await client.listResourceTemplates();
  const template = resourceTemplates.find(({ uriTemplate }) => uriTemplate.includes(service)).uriTemplate;
  return (await client.readResource({ uri: template.replace("{id}", "7") })).contents[0].text;
});
await feature("missing", async () => {
  try {
    return await client.readResource({ uri: "test://nothing" });
  } catch (error) {
    return `${error.code}`;
  }
});
await feature("subscribe", async () => {
  const before = told.lists;
  let subscription;
  if (modern) subscription = await client.listen({ toolsListChanged: true, resourceSubscriptions: [one] });
  else await client.subscribeResource({ uri: one });
  await sleep(200);
  const answer = text(await call("touch"));
  await until(() => told.lists > before && told.updates.length > 0);
  const seen = `${answer} ${told.lists > before ? "list" : ""} ${told.updates}`;
  if (modern) await subscription.close();
  else await client.unsubscribeResource({ uri: one });
  return seen;
});
await feature("cancel", async () => {
  const before = Number(text(await call("cancelled")));
  const stop = new AbortController();
  const waiting = call("wait", { signal: stop.signal }).catch((error) => error.message);
  await sleep(300);
  stop.abort("enough");
  await waiting;
  let count = before;
  for (let tries = 0; tries < 60 && count === before; tries += 1) {
    await sleep(50);
    count = Number(text(await call("cancelled")));
  }
  return count - before;
});
if (!modern) await feature("ping", async () => JSON.stringify(await client.ping()));
report.unhandled = unhandled;
console.log(JSON.stringify(report));
await client.close();
process.exit();
