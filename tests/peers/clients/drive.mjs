// What the two Node clients share: the command line, the calls and the report, as python_client.py describes them.

import { parseArgs } from "node:util";

const MAX_ERRORS = 5;

/**
 * Connects, lists the tools, makes the calls, prints the report and ends the process.
 * @param name the script's name, for messages
 * @param eras the eras that the SDK can be told to speak
 * @param connect async (settings) => {client, protocol, callTool(params, {timeout})}, connected
 */
export async function main(name, eras, connect) {
  const settings = parseClientArguments(name, eras);
  let connection;
  try {
    connection = await connect(settings);
    const { client } = connection;
    const report = {
      server: identity(client.getServerVersion()),
      protocol: connection.protocol,
      tools: await listTools(client, settings),
      ...(await callMany(connection, settings)),
    };
    console.log(JSON.stringify(report));
    if (report.failed > 0) console.error(`${name}: ${report.failed} of ${report.calls} calls failed`);
    process.exitCode = report.failed > 0 ? 1 : 0;
  } catch (error) {
    console.error(`${name}: ${reason(error)}`);
    process.exitCode = 1;
  }
  await connection?.client.close();
  process.exit(); // whatever a failed connection has left open
}

/** The variables named by `--env` over those that the SDK hands on, for the spawned command. */
export function childEnvironment(settings, defaults) {
  return { ...defaults, ...Object.fromEntries(settings.env.map((name) => [name, process.env[name]])) };
}

/** The options of the HTTP transport: the bearer token, if there is to be one. */
export function httpOptions(settings) {
  const token = settings["bearer-env"] && process.env[settings["bearer-env"]];
  return token ? { requestInit: { headers: { authorization: `Bearer ${token}` } } } : {};
}

async function listTools(client, settings) {
  const names = [];
  let cursor;
  do {
    const page = await client.listTools({ cursor }, { timeout: settings.timeout });
    names.push(...page.tools.map((tool) => tool.name));
    cursor = page.nextCursor;
  } while (cursor !== undefined);
  return names;
}

async function callMany({ callTool }, settings) {
  const { timeout } = settings;
  const report = { result: null, calls: 0, failed: 0, distinct_results: [], errors: [] };
  const seen = new Set();
  const failed = (why) => {
    report.failed += 1;
    if (report.errors.length < MAX_ERRORS) report.errors.push(why);
  };
  const worker = async () => {
    while (report.calls < settings.repeat) {
      report.calls += 1;
      try {
        const { _meta, ...result } = await callTool({ name: settings.call, arguments: settings.args }, { timeout });
        report.result = result;
        const text = JSON.stringify(result);
        if (!seen.has(text)) report.distinct_results.push(result);
        seen.add(text);
        if (result.isError) failed(result.content.map((part) => part.text ?? part.type).join(" "));
      } catch (error) {
        failed(reason(error));
      }
    }
  };
  if (settings.call) await Promise.all(Array.from({ length: settings.parallel }, worker));
  return report;
}

function parseClientArguments(name, eras) {
  const usage =
    `usage: ${name} [--call TOOL] [--args JSON] [--repeat N] [--parallel N] [--era ${eras.join("|")}] ` +
    `[--timeout SECONDS] [--env NAME]... [--bearer-env NAME]  stdio -- COMMAND ARGS... | unix PATH | http URL`;
  try {
    const { values, positionals } = parseArgs({
      options: {
        call: { type: "string" },
        args: { type: "string", default: "{}" },
        repeat: { type: "string", default: "1" },
        parallel: { type: "string", default: "1" },
        era: { type: "string", default: "auto" },
        timeout: { type: "string", default: "30" },
        env: { type: "string", multiple: true, default: [] },
        "bearer-env": { type: "string" },
      },
      allowPositionals: true,
    });
    const [transport, ...target] = positionals;
    const enough = transport === "stdio" ? target.length > 0 : target.length === 1;
    if (!["stdio", "unix", "http"].includes(transport) || !enough) throw new Error("no server to connect to");
    if (!eras.includes(values.era)) throw new Error(`this SDK cannot be told to speak the ${values.era} era`);
    for (const name of [...values.env, values["bearer-env"]]) {
      if (name !== undefined && !(name in process.env)) throw new Error(`the variable ${name} is not set`);
    }
    return {
      ...values,
      transport,
      target,
      args: JSON.parse(values.args),
      repeat: Number(values.repeat),
      parallel: Number(values.parallel),
      timeout: Number(values.timeout) * 1000,
    };
  } catch (error) {
    console.error(`${name}: ${error.message}\n${usage}`);
    process.exit(2);
  }
}

const identity = (info) => (info ? { name: info.name, version: info.version } : null);

function reason(error) {
  const code = error.code !== undefined && !error.message.includes(error.code) ? ` (${error.code})` : "";
  const cause = error.cause?.message ? `: ${error.cause.message}` : "";
  return `${error.name}: ${error.message}${code}${cause}`;
}
