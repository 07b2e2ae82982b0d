# The image of the DaemonSet in deploy/, for linux/amd64 and linux/arm64:
#
#     docker buildx build --platform linux/amd64,linux/arm64 --tag vpc-cni .
#
# Building it needs a registry and a network and is not part of scripts/test, so a change here
# must be built by hand before it is released.
#
# One image serves the init container and the daemon. It holds no shell.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package cni-plugin --package ipamd \
 && install -D --target-directory=/out target/release/aws-cni target/release/ipamd

# The upstream plugins that init-node brings to the host. The module's checksum is verified
# against Go's checksum database.
FROM golang:1.26-bookworm AS plugins
ARG PLUGINS_VERSION=v1.9.1
RUN set -eu; for plugin in \
      main/bridge main/dummy main/host-device main/ipvlan main/loopback main/macvlan main/ptp main/tap \
      main/vlan ipam/dhcp ipam/host-local ipam/static meta/bandwidth meta/firewall meta/portmap meta/sbr \
      meta/tuning meta/vrf; do \
    CGO_ENABLED=0 GOBIN=/out go install -trimpath -ldflags=-s \
      "github.com/containernetworking/plugins/plugins/$plugin@$PLUGINS_VERSION"; \
    done

# nft for our own table; iptables' save and restore, of both kinds, to take over from
# amazon-vpc-cni-k8s and to leave for good.
FROM debian:bookworm-slim AS root
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates iptables nftables \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/ipamd /app/ipamd
COPY --from=plugins /out/ /init/
COPY --from=build /out/aws-cni /init/aws-cni
COPY LICENSE /app/LICENSE
# The names that existing pod specs execute; the program looks at its own name.
RUN ln -s ipamd /app/aws-vpc-cni \
 && ln -s ipamd /app/aws-k8s-agent \
 && ln -s ipamd /app/grpc-health-probe \
 && ln -s /app/ipamd /init/aws-vpc-cni-init \
 && rm /bin/bash /bin/dash /bin/sh

FROM scratch
COPY --from=root / /
ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin
WORKDIR /app
ENTRYPOINT ["/app/ipamd"]
CMD ["run"]
