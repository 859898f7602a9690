# Two stages: compile, then only what runs. Works with the classic builder and with BuildKit.

FROM rust:1.95-bookworm AS build
WORKDIR /build
# A separate layer compiles the dependencies against an empty program, so that a change of a source file does not
# compile them again. Tests and benchmarks are not in the image, so their sections are removed from the manifest.
# rust-toolchain.toml is not copied: the base image has the toolchain.
COPY .cargo/config.toml ./.cargo/
COPY Cargo.toml Cargo.lock ./
COPY simulator/Cargo.toml ./simulator/
RUN awk '/^\[/ { image = !/^\[\[(test|bench|example)\]\]/ } image' Cargo.toml > stripped.toml \
    && mv stripped.toml Cargo.toml \
    && mkdir src simulator/src \
    && touch src/lib.rs simulator/src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && echo 'fn main() {}' > build.rs \
    && cargo build --release --locked \
    && cargo clean --release --package refrain --package refrain-simulator \
    && rm -r src simulator/src build.rs
COPY build.rs ./
COPY migrations ./migrations
COPY dashboard ./dashboard
COPY simulator/src ./simulator/src
COPY tests/fixtures/services ./tests/fixtures/services
COPY src ./src
# Symbol names are a fifth of the program. The log line of a panic has file and line without them.
RUN cargo build --release --locked \
    && strip target/release/refrain

FROM debian:bookworm-slim
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
RUN groupadd --gid 10001 refrain \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin refrain \
    && install --directory --owner=refrain --group=refrain /data
COPY --from=build /build/target/release/refrain /usr/local/bin/refrain
# The client port listens on all addresses inside the container; `docker run --publish` decides what is reachable from
# outside. The admin port stays on the container's loopback, where the health check uses it.
ENV REFRAIN_SERVER__LISTEN=0.0.0.0:8080 \
    REFRAIN_STORE__URL=sqlite:///data/refrain.db
# refrain reads a refrain.toml mounted here.
WORKDIR /etc/refrain
USER 10001:10001
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["refrain", "health"]
ENTRYPOINT ["refrain"]
CMD ["serve"]
