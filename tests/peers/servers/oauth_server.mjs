// An authorization server on npm's `oidc-provider`, for the grants that a program uses by itself.
//
//   oauth_server.mjs [--port P] [--ttl SECONDS]    0, the default, takes a free port; prints `listening on http://...`
//
// Client `app`, secret `app secret/+%`, which may have the scopes `read` and `write` of `read`, `write` and `admin`; client `poster`, secret
// `poster secret`, which sends it in the body; client `certified`, whose certificate for `CN=one` a proxy has checked, which says so in
// `X-Client-Verify` and `X-Client-Name` (RFC 8705, 2.1). Resources are this address and what is under `https://mcp.example/`; their tokens are JWTs. Tokens live
// for `--ttl` seconds; a refresh token works once and gives the next, and using it again revokes the whole grant. POST
// /test/grant makes a refresh token as if a person had consented, POST /test/revoke ends every grant, GET /test/asked tells what
// /token was asked, without the secrets. GET /.well-known/oauth-protected-resource/mcp describes a resource (RFC 9728).

import { createServer } from "node:http";
import { parseArgs } from "node:util";
import Provider from "oidc-provider";

const { values: settings } = parseArgs({ options: { port: { type: "string", default: "0" }, ttl: { type: "string", default: "3600" } } });
const SECRET = "app secret/+%";
const asked = [];
const grants = [];
const server = createServer();
await new Promise((done) => server.listen(Number(settings.port), "127.0.0.1", done));
const address = `http://127.0.0.1:${server.address().port}`;

const provider = new Provider(address, {
  clients: [
    {
      client_id: "app",
      client_secret: SECRET,
      scope: "openid offline_access read write",
      grant_types: ["client_credentials", "refresh_token", "authorization_code"],
      redirect_uris: ["https://app.example/back"],
      token_endpoint_auth_method: "client_secret_basic",
    },
    {
      client_id: "poster",
      client_secret: "poster secret",
      grant_types: ["client_credentials"],
      redirect_uris: [],
      response_types: [],
      token_endpoint_auth_method: "client_secret_post",
    },
    {
      client_id: "certified",
      grant_types: ["client_credentials"],
      redirect_uris: [],
      response_types: [],
      token_endpoint_auth_method: "tls_client_auth",
      tls_client_auth_subject_dn: "CN=one",
    },
  ],
  scopes: ["read", "write", "admin", "offline_access", "openid"],
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  rotateRefreshToken: true,
  ttl: { AccessToken: () => Number(settings.ttl), ClientCredentials: () => Number(settings.ttl), RefreshToken: 86400, Grant: 86400 },
  clientAuthMethods: ["client_secret_basic", "client_secret_post", "tls_client_auth"],
  features: {
    mTLS: {
      enabled: true,
      tlsClientAuth: true,
      getCertificate: (context) => context.get("x-client-name") || undefined,
      certificateAuthorized: (context) => context.get("x-client-verify") === "SUCCESS",
      certificateSubjectMatches: (context, _, expected) => context.get("x-client-name") === expected,
    },
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => undefined,
      useGrantedResource: () => true,
      getResourceServerInfo: (_, resource) => {
        if (!resource.startsWith("https://mcp.example/") && !resource.startsWith(address)) {
          throw Object.assign(new Error("invalid_target"), { error: "invalid_target", status: 400, statusCode: 400, expose: true });
        }
        return { scope: "read write admin", accessTokenTTL: Number(settings.ttl), accessTokenFormat: "jwt" };
      },
    },
  },
});

const callback = provider.callback();
server.on("request", async (request, response) => {
  const reply = (status, body) => {
    response.writeHead(status, { "content-type": "application/json" });
    response.end(JSON.stringify(body));
  };
  if (request.url === "/.well-known/oauth-protected-resource/mcp") {
    return reply(200, { resource: `${address}/mcp`, authorization_servers: [address] });
  }
  if (request.url === "/test/asked") return reply(200, asked);
  if (request.url === "/test/grant") {
    const client = await provider.Client.find("app");
    const grant = new provider.Grant({ accountId: "somebody", clientId: "app" });
    grant.addOIDCScope("openid offline_access read write");
    const grantId = await grant.save();
    grants.push(grantId);
    const token = new provider.RefreshToken({
      accountId: "somebody", client, grantId, gty: "authorization_code", scope: "openid offline_access read write",
      authTime: Math.floor(Date.now() / 1000), rotations: 0, iiat: Math.floor(Date.now() / 1000),
    });
    return reply(200, { refresh_token: await token.save() });
  }
  if (request.url === "/test/revoke") {
    for (const id of grants.splice(0)) {
      await provider.RefreshToken.revokeByGrantId(id);
      await (await provider.Grant.find(id))?.destroy();
    }
    return reply(200, {});
  }
  if (request.method === "POST" && request.url === "/token") {
    const basic = (request.headers.authorization ?? "").startsWith("Basic ");
    let body = "";
    request.on("data", (chunk) => (body += chunk));
    request.on("end", () => {
      const form = new URLSearchParams(body);
      asked.push({
        basic, posted: form.has("client_secret"), grant: form.get("grant_type"), scope: form.get("scope"),
        resource: form.get("resource"), audience: form.get("audience"),
      });
    });
  }
  callback(request, response);
});
console.log(`listening on ${address}`);
