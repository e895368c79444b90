# Three images out of one file: api (serves), worker (trains on the CPU), worker-gpu (trains on NVIDIA GPUs).
#   docker build --target api -t axon-api .
# A package index of your own: --build-arg PIP_INDEX_URL=...; a proxy: --build-arg HTTPS_PROXY=... Neither gets into an
# image, which only copies what the stages below have installed.
ARG PYTHON_IMAGE=python:3.11-slim

# What a change of pyproject.toml rebuilds at once; the stages behind it only when these lists are others.
FROM ${PYTHON_IMAGE} AS requirements
WORKDIR /build
COPY pyproject.toml deploy/docker/requirements.py ./
RUN python requirements.py serving pyproject.toml > serving.txt && python requirements.py training pyproject.toml > training.txt

FROM ${PYTHON_IMAGE} AS installer
RUN apt-get update && apt-get install -y --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ENV PIP_CACHE_DIR=/pip-cache PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_ONLY_BINARY=:all:
WORKDIR /build
COPY constraints.txt deploy/docker/trim.sh ./

# What every process imports. SciPy is a dependency of JAX for functions that a server never calls.
FROM installer AS serving-packages
COPY --from=requirements /build/serving.txt ./
RUN --mount=type=cache,target=/pip-cache \
    pip install --prefix=/packages -c constraints.txt -r serving.txt \
    && rm -rf /packages/lib/python3.11/site-packages/scipy* \
    && sh trim.sh /packages/lib/python3.11/site-packages

# What a trainer imports besides: pip finds the packages above, and adds what is missing.
FROM serving-packages AS training-packages
COPY --from=requirements /build/training.txt ./
RUN --mount=type=cache,target=/pip-cache \
    PYTHONPATH=/packages/lib/python3.11/site-packages \
       pip install --prefix=/more -c constraints.txt -r training.txt \
    && sh trim.sh /more/lib/python3.11/site-packages

FROM training-packages AS cuda-packages
ARG CUDA=cuda12
RUN --mount=type=cache,target=/pip-cache \
    PYTHONPATH=/packages/lib/python3.11/site-packages:/more/lib/python3.11/site-packages \
    pip install --prefix=/cuda -c constraints.txt "jax[${CUDA}]"

FROM installer AS code
COPY pyproject.toml README.md LICENSE ./
COPY engine engine
COPY service service
RUN --mount=type=cache,target=/pip-cache PIP_ONLY_BINARY= pip install --no-deps --prefix=/code .

# The images. The code comes last, so a change of it costs a few megabytes. Probes are patient: a machine that is busy
# answers late, and `docker compose up --wait` gives up where a container is called unhealthy.
FROM ${PYTHON_IMAGE} AS base
ENV AXON_DATA_DIR=/data AXON_LOG_FORMAT=json HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m pip uninstall -q -y --root-user-action=ignore pip setuptools wheel \
    # Python's images come without byte code, which costs every start, and every probe, 0.4 s of CPU.
    && PYTHONDONTWRITEBYTECODE= python -m compileall -q -j 0 /usr/local/lib/python3.11 \
           -x 'test|idlelib|lib2to3|ensurepip|turtledemo|tkinter|distutils|pydoc_data|config-3' \
    && groupadd --gid 10001 axon && useradd --uid 10001 --gid axon --no-create-home --home-dir /tmp axon \
    && install -d -o axon -g axon -m 0750 /data
LABEL org.opencontainers.image.title="Axon Server" \
      org.opencontainers.image.description="A model-serving microservice that trains what it serves" \
      org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /data
ENTRYPOINT ["axon"]

FROM base AS serving
COPY --from=serving-packages /packages /usr/local

FROM serving AS training
COPY --from=training-packages /more /usr/local

FROM training AS cuda
COPY --from=cuda-packages /cuda /usr/local
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM serving AS api
COPY --from=code /code /usr/local
USER 10001:10001
EXPOSE 8000 8001
HEALTHCHECK --interval=5s --timeout=15s --start-period=120s --retries=5 CMD ["axon", "health"]
CMD ["serve", "--host", "0.0.0.0"]

FROM training AS worker
COPY --from=code /code /usr/local
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=30s --start-period=120s --retries=5 CMD ["axon", "health", "--worker"]
CMD ["worker"]

FROM cuda AS worker-gpu
COPY --from=code /code /usr/local
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=30s --start-period=120s --retries=5 CMD ["axon", "health", "--worker"]
CMD ["worker"]
