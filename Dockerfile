# The server of keymailbox: every process of the Procfile runs from this one image. See compose.yaml.

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
# The locks first: they change less often than the code, and so does the layer.
COPY requirements/build.lock requirements/runtime.lock requirements/
RUN python -m venv /opt/build \
 && /opt/build/bin/python -m pip install --require-hashes --requirement requirements/build.lock \
 && python -m venv /opt/keymailbox \
 && /opt/keymailbox/bin/python -m pip install --require-hashes --requirement requirements/runtime.lock
COPY LICENSE README.md pyproject.toml ./
COPY pki pki
COPY workers workers
COPY schemas schemas
# --no-index: what the lock does not have is an error, never a download. pip is of no use at run time.
RUN /opt/build/bin/python -m hatchling build -t wheel -d /dist \
 && /opt/keymailbox/bin/python -m pip install --no-deps --no-index /dist/*.whl \
 && /opt/keymailbox/bin/python -m pip uninstall --yes pip setuptools

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 keymailbox \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/keymailbox --shell /usr/sbin/nologin keymailbox \
 && install -d -o 10001 -g 10001 -m 0700 /var/lib/keymailbox \
 && install -d -o 10001 -g 10001 -m 0755 /var/lib/keymailbox-certificates
COPY --from=build /opt/keymailbox /opt/keymailbox
ENV PATH=/opt/keymailbox/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    KMB_HOME=/var/lib/keymailbox
USER 10001:10001
WORKDIR /var/lib/keymailbox
EXPOSE 8080
# Right for the API, which is the default command; compose.yaml gives the other processes their own.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/readyz', timeout=4)"]
CMD ["kmb-server", "api", "--host", "0.0.0.0", "--port", "8080"]
