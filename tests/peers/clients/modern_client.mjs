// Drives the client of npm's `@modelcontextprotocol/client`, which knows both eras, against a server.
// Usage, options and output: see python_client.py.
//
// Over stdio with `--era auto` or `modern` this SDK asks `server/discover` of a process that it spawns for that alone,
// then spawns the command a second time for the session. Over a Unix socket it asks on the one connection.

import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { getDefaultEnvironment, StdioClientTransport } from "@modelcontextprotocol/client/stdio";
import { childEnvironment, httpOptions, main } from "./drive.mjs";
import { UnixClientTransport } from "./unix_transport.mjs";

const MODES = { auto: "auto", legacy: "legacy", modern: { pin: "2026-07-28" } };

await main("modern_client.mjs", Object.keys(MODES), async (settings) => {
  const client = new Client(
    { name: "mcpeg-test-modern", version: "1.0.0" },
    { versionNegotiation: { mode: MODES[settings.era] } },
  );
  await client.connect(newTransport(settings), { timeout: settings.timeout });
  const protocol = client.getNegotiatedProtocolVersion();
  return { client, protocol, callTool: (params, options) => client.callTool(params, options) };
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
