# syntax=docker/dockerfile:1

# mcpeg as an image: the binary, certificate authorities and libc; no shell, no package manager, not root.
#
#   docker build -t mcpeg .
#   docker run --rm -v ./my-config:/etc/mcpeg:ro -v mcpeg-run:/run/mcpeg mcpeg
#
# The configuration names its sockets and rendered files under /run/mcpeg, as deploy/kubernetes/sidecar.yaml does: /etc is read-only.
#
# An upstream that mcpeg starts (`command:` in a service file) needs its program in the image: copy the binary from here into an image
# that has it, with `COPY --from=mcpeg /usr/bin/mcpeg /usr/bin/mcpeg`.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src ./src
# What was downloaded and compiled stays in the builder's cache, so a change of the sources compiles mcpeg alone.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked --bin mcpeg \
    && mkdir -p /out/run/mcpeg \
    && install -m 0755 target/release/mcpeg /out/mcpeg

# Debian 12 as above: the same libc. Its user `nonroot` is 65532.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="mcpeg" \
      org.opencontainers.image.description="The sidecar beside an LLM agent: secrets, rendered files, MCP, telemetry and audit"
COPY --from=build /out/mcpeg /usr/bin/mcpeg
COPY --from=build --chown=65532:65532 /out/run/mcpeg /run/mcpeg
# A backtrace costs megabytes, and says nothing that a panic's message does not.
ENV MCPEG_CONFIG=/etc/mcpeg/mcpeg.yaml \
    RUST_BACKTRACE=0
USER 65532:65532
WORKDIR /run/mcpeg
# The configuration (mount it read-only), and sockets and rendered files (share it with the agent; best in memory).
VOLUME ["/etc/mcpeg", "/run/mcpeg"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["/usr/bin/mcpeg", "status", "--ready"]
ENTRYPOINT ["/usr/bin/mcpeg"]
CMD ["run"]
