# What a developer does often. The steps themselves are in tests/run, which CI runs too and which does without just.

# This list
default:
    @just --list

# Format the code
fmt:
    cargo fmt

# Check format, lints, and what may be in the binary
lint:
    bash tests/run format lint deny files

# Run one or several steps of tests/run, or all of them
test *STEPS:
    bash tests/run {{ STEPS }}

# Exactly what CI runs
ci:
    bash .ci/run

# Known vulnerabilities among the crates; fetches the RustSec database
advisories:
    bash tests/run advisories

# See the whole of it work, in a few seconds
demo *ARGS:
    cargo run -- demo {{ ARGS }}

# Run the example configuration with the secrets of config/secrets/api-keys.yaml
run *ARGS:
    cargo run -- run --config config/mcpeg.yaml --environment local {{ ARGS }}

# Measure: latency, throughput, memory, size, start
bench *ARGS:
    cargo bench --locked --bench sidecar -- {{ ARGS }}

# Write the generated reference of the configuration
docs:
    cargo run -- schema --markdown > docs/CONFIGURATION.md

# Build the image
image TAG="mcpeg:0.1.0":
    docker build -t {{ TAG }} .
