#!/bin/sh
# The system's part of an image, for any Debian or Ubuntu base.
#
#   base.sh runtime   Python in /opt/venv, and the libraries that torch and MinkowskiEngine load
#   base.sh build     what compiles MinkowskiEngine
#   base.sh app       the package from /app in the virtual environment, and the user it runs as
set -eu
export DEBIAN_FRONTEND=noninteractive  # Ubuntu's Python brings tzdata, which asks where you are

install() { apt-get install -y --no-install-recommends "$@"; }

case ${1:-} in
runtime)
    apt-get update
    install libopenblas0-pthread libgomp1 util-linux
    # Triton compiles a launcher for each of its kernels when a GPU first runs it.
    if [ -n "${CUDA_VERSION:-}" ]; then install gcc libc6-dev python3-dev; fi
    command -v python3 >/dev/null && python3 -c 'import ensurepip, venv' 2>/dev/null || install python3 python3-venv
    rm -rf /var/lib/apt/lists/*
    python3 -m venv /opt/venv
    ;;
build)
    apt-get update
    install build-essential libopenblas-dev
    command -v python3 >/dev/null || install python3
    # An image of Python itself has its headers; a distribution's Python has them in a package.
    include=$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    [ -f "$include/Python.h" ] || install python3-dev
    rm -rf /var/lib/apt/lists/*
    ;;
app)
    pip install --no-cache-dir --no-deps --editable /app
    chmod -R go+rX /app # a checkout made under umask 077 keeps its permissions in the image
    # -o: some bases give number 1000 to a user of their own
    useradd --uid 1000 -o --home-dir /tmp/home --shell /bin/sh mink
    mkdir -p /workspace
    chown mink /workspace
    ;;
*)
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
