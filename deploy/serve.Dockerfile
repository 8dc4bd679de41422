# The serving tier's image. From the repository's root: docker build -f deploy/serve.Dockerfile -t fedstill-serve .
# An index with wheels for your accelerator goes into pip's own PIP_INDEX_URL / PIP_EXTRA_INDEX_URL build arguments.
FROM python:3.11-slim

ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# More extras, such as ray,postgresql for deploy/ray/.
ARG EXTRAS
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 KMP_BLOCKTIME=0

# Mounted volumes take over the owner of these folders.
RUN useradd --system --create-home --uid 10001 fedstill \
    && mkdir -p /state /var/lib/fedstill/serve \
    && chown fedstill /state /var/lib/fedstill/serve

COPY pyproject.toml setup.py constraints.txt README.md LICENSE /build/
COPY cli /build/cli
COPY client /build/client
COPY cloud_server /build/cloud_server
COPY common /build/common
COPY datasets /build/datasets
COPY edge_client /build/edge_client
COPY evaluation /build/evaluation
COPY importroot /build/importroot
COPY models /build/models
COPY protos /build/protos
COPY simulation /build/simulation
RUN cd /build && pip install --constraint constraints.txt '.[serve,openvino]' \
    && if [ -n "$EXTRAS" ]; then pip install --constraint constraints.txt ".[$EXTRAS]"; fi \
    && rm -r /build

USER fedstill
WORKDIR /state
EXPOSE 8000 8001 8002
ENTRYPOINT ["fedstill"]
CMD ["serve", "--config", "/etc/fedstill/serve.toml"]
