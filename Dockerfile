# syntax=docker/dockerfile:1
# Posthouse as an image that holds one static program, run as nobody. For other machines, too:
#   docker buildx build --platform linux/amd64,linux/arm64 --tag example.invalid/posthouse:dev .
#   docker build --target demo-app --tag example.invalid/demo-app:dev .    # the tests' workloads
# `make image` makes the same images without Docker.

FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /src
COPY . .
ARG TARGETARCH
ARG REVISION=unknown
# Two architectures are built at once and cannot share a folder.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,id=posthouse-target-${TARGETARCH} \
    POSTHOUSE_COMMIT=${REVISION} images/build.sh /out

FROM scratch AS demo-app
LABEL org.opencontainers.image.title="Posthouse demo workloads" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/posthouse-demo-app /app
# A number of our own, the chart's, since a cluster that asks for runAsNonRoot cannot judge a name.
USER 41404:41404
ENTRYPOINT ["/app"]

FROM scratch AS posthouse
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Posthouse" \
      org.opencontainers.image.description="A per-node proxy that makes a Kubernetes cluster a service mesh without sidecars" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out/posthouse /posthouse
USER 41404:41404
ENTRYPOINT ["/posthouse"]
