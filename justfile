# Recipes for everyday work. `just --list` shows them.

# Run the proxy, with ./refrain.toml if it exists.
run *arguments:
    cargo run --release -- {{arguments}}

# Run the proxy against a simulated upstream. Prints commands to try.
demo:
    cargo run --release -- demo

# Check format, lints, documentation, tests, licences and advisories. Takes minutes, needs no root.
check:
    scripts/check

# Run the tests only.
test *arguments:
    cargo test --workspace {{arguments}}

# Run the tests that need root, Debian packages or minutes. Without a name: all parts.
extended *parts:
    tests/extended {{parts}}

# Compare the same polling clients with and without refrain. Takes about ten minutes.
storm *arguments:
    cargo bench --bench poll_storm -- {{arguments}}

# Compare the speed with a bare hyper server, nginx and Varnish. Takes about 25 minutes, fewer with `--quick`.
bench *arguments:
    benches/compare.sh {{arguments}}

# Check the dependencies for advisories and licences. Needs cargo-deny.
audit:
    cargo deny check

# Build the Debian package. Needs cargo-deb.
package:
    cargo deb --locked

# Build the container image.
image:
    docker build -t refrain .
