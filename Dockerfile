# syntax=docker/dockerfile:1
# attachd's image. Any architecture that Rust and Debian have: nothing here names one.
#
#   docker buildx build --build-arg SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) \
#     --output type=image,name=registry.example.org/attachd:0.1.0,rewrite-timestamp=true .
#
# The same source, base images (pin them by digest: --build-arg RUST_IMAGE=rust@sha256:…) and time give the same image.
ARG DEBIAN_SUITE=trixie
ARG RUST_IMAGE=rust:1.95-slim-${DEBIAN_SUITE}
ARG BASE_IMAGE=debian:${DEBIAN_SUITE}-slim

FROM ${RUST_IMAGE} AS build
WORKDIR /source
# Where the source lies must not show in the binary.
ENV RUSTFLAGS="--remap-path-prefix=/source=. --remap-path-prefix=/usr/local/cargo=cargo"
COPY Cargo.toml Cargo.lock README.md ./
COPY src src
ARG SOURCE_DATE_EPOCH
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    cargo build --release --locked --bin attachd \
    && target/release/attachd --version

# Debian, not distroless: the agent needs nsenter with the libraries it is linked to, which are part of this
# image and known to scanners and updates. The host's iscsiadm, multipath, blkid, mkfs and e2fsck are used, not own ones.
FROM ${BASE_IMAGE}
# Copied, not installed: apt-get would give another image every day.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /source/target/release/attachd /usr/local/bin/attachd
RUN nsenter --version && attachd --version

ARG VERSION=0.1.0
ARG REVISION
LABEL org.opencontainers.image.title="attachd" \
      org.opencontainers.image.description="Attaches OpenStack Cinder volumes to Linux nodes without Nova" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# glibc gives each thread memory of its own (arenas), and each keeps what it gave back (tcache): with one arena half
# as much is held after 32 attaches, and without the caches a third less of that.
ENV GLIBC_TUNABLES=glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0
# As root, which is the default: the agent drives the node's kernel.
ENTRYPOINT ["attachd"]
