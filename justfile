# Recipes for everyday work; `just --list` shows them.

# The proxy, with ./refrain.toml if it is there.
run *arguments:
    cargo run --release -- {{arguments}}

# The proxy against a simulated upstream, with lines to paste.
demo:
    cargo run --release -- demo

# What CI runs: format, lints, documentation, tests.
check:
    .ci/run

# The tests alone.
test *arguments:
    cargo test {{arguments}}

# The poll storm: the same clients straight at the simulator and through refrain, in about ten minutes.
storm *arguments:
    cargo bench --bench poll_storm -- {{arguments}}

# Speed beside a bare hyper server, nginx and Varnish, in about 25 minutes; `--quick` for a few.
bench *arguments:
    benches/compare.sh {{arguments}}

# Advisories, licences and bans of the dependencies; needs cargo-deny.
audit:
    cargo deny check

# The container image.
image:
    docker build -t refrain .
