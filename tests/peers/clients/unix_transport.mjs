// A client transport over a Unix socket for either npm SDK, framed as stdio is: one JSON message a line.

import { connect } from "node:net";

export class UnixClientTransport {
  onmessage;
  onerror;
  onclose;
  #path;
  #socket;
  #rest = "";

  constructor(path) {
    this.#path = path;
  }

  start() {
    return new Promise((resolve, reject) => {
      this.#socket = connect(this.#path, resolve);
      this.#socket.setEncoding("utf8");
      this.#socket.once("error", reject);
      this.#socket.on("error", (error) => this.onerror?.(error));
      this.#socket.on("data", (text) => this.#receive(text));
      this.#socket.on("close", () => this.onclose?.());
    });
  }

  send(message) {
    return new Promise((resolve, reject) => {
      this.#socket.write(`${JSON.stringify(message)}\n`, (error) => (error ? reject(error) : resolve()));
    });
  }

  async close() {
    this.#socket?.end();
  }

  #receive(text) {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop();
    for (const line of lines) {
      try {
        this.onmessage?.(JSON.parse(line));
      } catch (error) {
        this.onerror?.(error);
      }
    }
  }
}
