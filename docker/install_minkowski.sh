#!/usr/bin/env bash
# Build and install MinkowskiEngine 0.5.4 for the torch of one Python environment.
#
#   docker/install_minkowski.sh [--cpu | --cuda] [--force] [--wheel-only]
#
#   --cpu, --cuda   which build (default: CUDA where torch is a CUDA build and nvcc is found, else CPU)
#   --force         build anew, whatever is installed or cached
#   --wheel-only    leave the environment alone; print the path of the wheel
#
# The interpreter is $PYTHON, else the active virtual environment's, else .venv's beside this checkout, else python3.
# More settings, by environment variable:
#   MAX_JOBS              compilers at once (default: what cores and memory allow; count 2.4 GiB for each, 4 with CUDA)
#   CUDA_HOME             the CUDA toolkit (default: the one of nvcc, else /usr/local/cuda)
#   TORCH_CUDA_ARCH_LIST  GPU architectures, e.g. "8.0 9.0" (default: that of the GPU here)
#   MINKOWSKI_CACHE       where built wheels are kept (default: ~/.cache/mink_decouple/minkowski)
#
# The source is PyPI's, its checksum is pinned, and minkowski_patch.py lists what is changed in it and why.
set -euo pipefail

version=0.5.4
sha256=b1879c00d0b0b1d30ba622cce239886a7e3c78ee9da1064cdfe2f64c2ab15f94
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { printf 'minkowski: %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

target=auto force='' wheel_only=''
for argument in "$@"; do
    case $argument in
        --cpu) target=cpu ;;
        --cuda) target=cuda ;;
        --force) force=yes ;;
        --wheel-only) wheel_only=yes ;;
        -h | --help) sed -n '2,18s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) printf 'error: %s: unknown argument; choices: --cpu, --cuda, --force, --wheel-only\n' "$argument" >&2; exit 2 ;;
    esac
done

if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python3
    if [[ -n ${VIRTUAL_ENV:-} ]]; then
        PYTHON=$VIRTUAL_ENV/bin/python
    elif [[ -x $here/../.venv/bin/python ]]; then
        PYTHON=$here/../.venv/bin/python
    fi
fi
command -v "$PYTHON" >/dev/null || fail "$PYTHON: not found; set PYTHON to the interpreter of your environment"
PYTHON=$(command -v "$PYTHON")
[[ $PYTHON = /* ]] || PYTHON=$PWD/$PYTHON  # the build runs in folders of its own
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "$("$PYTHON" --version) is too old: 3.10 or newer is needed"
read -r torch torch_cuda tag < <("$PYTHON" - <<'PY'
import sys

try:
    import torch
except ModuleNotFoundError:
    print("missing")
except Exception as error:  # a broken installation fails in its own ways
    print("broken", "-", " ".join(str(error).split())[:160])
else:
    print(torch.__version__, torch.version.cuda or "none", f"cp{sys.version_info[0]}{sys.version_info[1]}")
PY
) || true
[[ $torch != missing ]] || fail "torch is missing in $PYTHON: install it first ($PYTHON -m pip install torch), then run this again"
[[ -n $torch && $torch != broken ]] || fail "torch does not import in $PYTHON (${tag:-no answer}): install it anew, then run this again"
"$PYTHON" -m pip --version >/dev/null 2>&1 || fail "pip is missing in $PYTHON: $PYTHON -m ensurepip, or uv pip install pip"

# Which build: the libraries that torch was built with decide, not the GPU, so that an image can be built without one.
cuda_home=''
if [[ -n ${CUDA_HOME:-} ]]; then
    [[ -x $CUDA_HOME/bin/nvcc ]] || fail "CUDA_HOME=$CUDA_HOME: has no bin/nvcc"
    cuda_home=$CUDA_HOME
else
    # nvcc knows its folder even where a script or a link stands for it
    top=$(nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p') || true
    for candidate in "$top" /usr/local/cuda; do
        [[ -n $candidate && -x $candidate/bin/nvcc ]] && cuda_home=$(cd "$candidate" && pwd -P) && break
    done
fi
if [[ $target = auto ]]; then
    if [[ $torch_cuda != none && -n $cuda_home ]]; then
        target=cuda
    else
        target=cpu
        [[ $torch_cuda = none ]] || say "torch $torch is a CUDA build but no nvcc is here: building for the CPU; set CUDA_HOME for CUDA"
    fi
fi
if [[ $target = cuda ]]; then
    [[ $torch_cuda != none ]] || fail "--cuda: torch $torch is a CPU build; install a CUDA build of torch, or use --cpu"
    [[ -n $cuda_home ]] || fail "--cuda: no nvcc found; install the CUDA toolkit $torch_cuda and set CUDA_HOME to its folder"
    nvcc=$("$cuda_home/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
    [[ ${nvcc%%.*} = "${torch_cuda%%.*}" ]] ||
        fail "$cuda_home is CUDA $nvcc but torch $torch was built with $torch_cuda: the major versions must agree; set CUDA_HOME"
fi

# Imports the engine in a fresh process, convolves, and compares with a sum worked out from the definition.
works() {
    TARGET=$target "$PYTHON" -W ignore - <<'PY'
import os
import sys

import torch

import MinkowskiEngine as ME

if os.environ["TARGET"] == "cuda" and not ME.is_cuda_available():
    sys.exit("the installed MinkowskiEngine is a CPU build")
devices = ["cpu"] + ["cuda"] * (ME.is_cuda_available() and torch.cuda.is_available())
coords = torch.tensor([[0, x, y, 0] for x in range(-3, 3) for y in range(4)], dtype=torch.int32)
feats = torch.arange(len(coords) * 2, dtype=torch.float32).view(-1, 2)
for device in devices:
    layer = ME.MinkowskiConvolution(2, 3, kernel_size=3, dimension=3).to(device)
    out = layer(ME.SparseTensor(feats.to(device), coords.to(device))).F.cpu()
    kernel = layer.kernel.detach().cpu()
    row = {tuple(c): i for i, c in enumerate(coords[:, 1:].tolist())}
    for place, i in row.items():
        expected = torch.zeros(3)
        for k in range(27):
            near = (place[0] + k % 3 - 1, place[1] + k // 3 % 3 - 1, place[2] + k // 9 - 1)
            if near in row:
                expected += feats[row[near]] @ kernel[k]
        assert torch.allclose(out[i], expected, rtol=1e-4, atol=1e-4), (device, place)
print(f"MinkowskiEngine {ME.__version__} works: {' and '.join(devices)}")
PY
}

if [[ -z $force && -z $wheel_only ]] && said=$(works 2>/dev/null); then
    say "$said; nothing to do"
    exit 0
fi

[[ $(uname -s) = Linux ]] || fail "$(uname -s): MinkowskiEngine builds on Linux only; use Docker (docs/docker.md), or model.engine native"
key=$(cat "$here/minkowski_patch.py" "$here/minkowski_cuda.h" | sha256sum | cut -c 1-12)
arch=''
if [[ $target = cuda ]]; then
    # without a list the card here decides: a wheel for another one would load and then fail
    arch=${TORCH_CUDA_ARCH_LIST:-$("$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())' 2>/dev/null || true)}
    [[ -z $arch ]] || export TORCH_CUDA_ARCH_LIST=$arch
fi
cache=${MINKOWSKI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mink_decouple/minkowski}
folder=$cache/$tag-$(uname -m)-torch$torch-$target${arch:+-${arch//[; ]/_}}-$key
wheel=$(find "$folder" -iname 'minkowskiengine*.whl' 2>/dev/null | head -n 1) || true

build() {
    local compiler=${CXX:-g++} needs='' log=$work/build.log
    command -v "$compiler" >/dev/null || fail "$compiler: not found; install a C++ compiler (Debian: apt-get install build-essential)"
    includes=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    [[ -f $includes/Python.h ]] || needs="the headers of $("$PYTHON" --version) (Debian: apt-get install python3-dev)"
    prefix=$("$PYTHON" -c 'import sys; print(sys.base_prefix)')  # an interpreter of conda's loads conda's libraries
    [[ ! -d $prefix/conda-meta ]] || export CPATH=${CPATH:+$CPATH:}$prefix/include LIBRARY_PATH=${LIBRARY_PATH:+$LIBRARY_PATH:}$prefix/lib
    [[ ! -d /usr/include/openblas ]] || export CPATH=${CPATH:+$CPATH:}/usr/include/openblas  # Fedora's place of it
    printf '#include <cblas.h>\nint main() { return 0; }\n' >"$work/blas.cpp"
    "$compiler" "$work/blas.cpp" -lopenblas -o "$work/blas" 2>/dev/null ||
        needs="${needs:+$needs, and }OpenBLAS with its headers (Debian: apt-get install libopenblas-dev; Fedora: dnf install openblas-devel; conda: conda install -c conda-forge openblas)"
    [[ -z $needs ]] || fail "missing: $needs"

    # pip unpacks the source, checks its checksum, and then fails to ask it for its metadata: that needs the torch which a
    # build of its own does not see. The unpacked source is all that is wanted.
    printf 'MinkowskiEngine==%s --hash=sha256:%s\n' $version $sha256 >"$work/requirements.txt"
    mkdir -p "$work/pip"
    (cd "$work" && env -u PYTHONPATH -u PIP_NO_BUILD_ISOLATION TMPDIR="$work/pip" "$PYTHON" -m pip download --no-deps --no-clean --use-pep517 \
        --no-binary MinkowskiEngine --require-hashes --requirement requirements.txt >"$work/download.log" 2>&1) || true
    source=$(find "$work/pip" -maxdepth 2 -type d -iname 'minkowskiengine_*' -path '*pip-download-*' | head -n 1)
    [[ -n $source && -f $source/setup.py ]] || { tail -n 5 "$work/download.log" >&2; fail "could not download the source of MinkowskiEngine $version; see the lines above"; }
    "$PYTHON" "$here/minkowski_patch.py" "$source" >&2

    # The build tools stay out of the environment.
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --target "$work/tools" setuptools wheel ninja ||
        fail "could not install setuptools, wheel and ninja for the build"

    local cores memory jobs each=2.4 options=(--blas=openblas --cpu_only)
    [[ $target = cpu ]] || each=4
    cores=$(nproc)
    memory=$(awk -v each=$each '/MemAvailable/ {print int($2 / 1024 / 1024 / each)}' /proc/meminfo 2>/dev/null || echo 1)
    jobs=${MAX_JOBS:-$((memory < 1 ? 1 : memory < cores ? memory : cores))}
    if [[ $target = cuda ]]; then
        options=(--blas=openblas --force_cuda)
        cp "$here/minkowski_cuda.h" "$work/"  # a place without blanks, whatever the checkout's
        export CUDA_HOME=$cuda_home NVCC_APPEND_FLAGS="-include $work/minkowski_cuda.h -DCCCL_DISABLE_NVTX ${NVCC_APPEND_FLAGS:-}"
        # CUDA 13 moved thrust to where only nvcc looks; some of the sources are the C++ compiler's.
        [[ ! -d $cuda_home/include/cccl ]] || CPATH=${CPATH:+$CPATH:}$cuda_home/include/cccl
        export CPATH
        cuda_libraries
    fi
    say "compiling with $jobs job(s), some $([[ $target = cuda ]] && echo "12 minutes for each architecture" || echo "5 minutes") on two cores; log: $log"
    local started=$SECONDS
    if ! (cd "$source" && PYTHONPATH=$work/tools PATH=$work/tools/bin:$PATH MAX_JOBS=$jobs CFLAGS="-g0 ${CFLAGS:-}" \
        "$PYTHON" setup.py bdist_wheel --dist-dir "$work/dist" "${options[@]}") >"$log" 2>&1; then
        explain "$log"
    fi
    mkdir -p "$folder"
    wheel=$folder/$(basename "$work"/dist/*.whl)
    cp "$work"/dist/*.whl "$wheel.part"
    mv "$wheel.part" "$wheel"
    say "built $wheel in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"
}

# Where the toolkit is without its mathematics libraries, those that came with torch's wheel serve.
cuda_libraries() {
    [[ -f $cuda_home/include/cusparse.h ]] && return
    local site header library
    site=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    for header in cusparse cublas_v2 curand cusolverDn; do
        found=$(find "$site/nvidia" -name "$header.h" 2>/dev/null | head -n 1) || true
        [[ -n $found ]] || fail "$header.h: neither in $cuda_home nor in torch's own packages; install the whole CUDA toolkit"
        CPATH=${CPATH:+$CPATH:}$(dirname "$found")
    done
    mkdir -p "$work/lib"
    for library in cusparse cudart; do
        found=$(find "$cuda_home/" "$site/nvidia" -name "lib$library.so*" 2>/dev/null | head -n 1) || true
        [[ -n $found ]] || fail "lib$library.so: neither in $cuda_home nor in torch's own packages; install the whole CUDA toolkit"
        ln -sf "$found" "$work/lib/lib$library.so"
    done
    export LIBRARY_PATH=$work/lib${LIBRARY_PATH:+:$LIBRARY_PATH}
}

explain() {  # what the compiler's last words mean for the person who reads them
    local kept=$cache/failed-build.log
    mkdir -p "$cache" && cp "$1" "$kept"
    grep -E -m 5 '(error|Error|Killed|fatal)' "$kept" >&2 || tail -n 15 "$kept" >&2
    if grep -qE 'Killed|cannot allocate memory|out of memory' "$kept"; then
        fail "the compiler ran out of memory: run again with MAX_JOBS=1 (count 2.4 GiB for each job, 4 with CUDA); log: $kept"
    elif grep -q 'unsupported GNU version' "$kept"; then
        fail "this compiler is too new for this CUDA toolkit: set CC and CXX to an older one (e.g. CXX=g++-12); log: $kept"
    elif grep -q 'Unsupported gpu architecture' "$kept"; then
        fail "TORCH_CUDA_ARCH_LIST names an architecture this CUDA toolkit does not know; log: $kept"
    fi
    fail "the build of MinkowskiEngine failed; log: $kept"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [[ -n $wheel && -z $force ]]; then
    say "using the wheel built before: $wheel"
else
    build
fi
if [[ -n $wheel_only ]]; then
    echo "$wheel"
    exit 0
fi
"$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "$wheel"
said=$(works) || fail "MinkowskiEngine was installed but does not work: see the lines above; build anew with --force ($wheel)"
say "$said"
