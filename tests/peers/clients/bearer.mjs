// What the conformance suites load first, so that they show the token of `AGENT_TOKEN` with each request: they cannot be told to. They ask
// over `fetch`, `undici` and `node:http`; the first two end in the same dispatcher.

import http from "node:http";
import { Agent, setGlobalDispatcher } from "undici";

if (process.env.AGENT_TOKEN) {
  const authorization = `Bearer ${process.env.AGENT_TOKEN}`;
  const shown = (headers) =>
    Array.isArray(headers) ? [...headers, "authorization", authorization] : { ...headers, authorization };
  const agent = new Agent().compose(
    (dispatch) => (options, handler) => dispatch({ ...options, headers: shown(options.headers) }, handler),
  );
  setGlobalDispatcher(agent);
  const request = http.request;
  http.request = (options, ...rest) => request({ ...options, headers: shown(options.headers) }, ...rest);
}
