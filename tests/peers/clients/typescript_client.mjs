// Drives the client of npm's `@modelcontextprotocol/sdk`, which knows the legacy era only, against a server.
// Usage, options and output: see python_client.py; `--era` takes auto and legacy, which are the same here.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { getDefaultEnvironment, StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { childEnvironment, httpOptions, main } from "./drive.mjs";
import { UnixClientTransport } from "./unix_transport.mjs";

await main("typescript_client.mjs", ["auto", "legacy"], async (settings) => {
  const client = new Client({ name: "mcpeg-test-typescript", version: "1.0.0" });
  const transport = newTransport(settings);
  // The client keeps the negotiated version to itself, but tells it to a transport that wants to know.
  let protocol = null;
  const tellTransport = transport.setProtocolVersion?.bind(transport);
  transport.setProtocolVersion = (version) => {
    protocol = version;
    tellTransport?.(version);
  };
  await client.connect(transport, { timeout: settings.timeout });
  return { client, protocol, callTool: (params, options) => client.callTool(params, undefined, options) };
});

function newTransport(settings) {
  const [target, ...args] = settings.target;
  switch (settings.transport) {
    case "stdio": {
      const env = childEnvironment(settings, getDefaultEnvironment());
      return new StdioClientTransport({ command: target, args, env });
    }
    case "unix":
      return new UnixClientTransport(target);
    default:
      return new StreamableHTTPClientTransport(new URL(target), httpOptions(settings));
  }
}
