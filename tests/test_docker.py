"""The files of docker/ and compose.yaml: what can be held true without an engine."""

import os
import re
import stat
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
SCRIPT = DOCKER / "install_minkowski.sh"
sys.path.insert(0, str(DOCKER))
import minkowski_patch  # noqa: E402  # beside the Dockerfile, since images are built from there

DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
GPU = yaml.safe_load((ROOT / "compose.gpu.yaml").read_text(encoding="utf-8"))


def source_tree(root: Path) -> Path:
    """A folder in which every pattern of the patch occurs as often as in MinkowskiEngine 0.5.4."""
    engine = root / "MinkowskiEngine"
    (engine / "utils").mkdir(parents=True)
    (root / "src" / "3rdparty").mkdir(parents=True)
    for stem in ("MinkowskiCommon", "MinkowskiCoordinateManager", "MinkowskiTensorField", "utils/quantization"):
        (engine / f"{stem}.py").write_text("from collections import Sequence\n")
    (engine / "MinkowskiKernelGenerator.py").write_text("from collections import Sequence, namedtuple\n")
    (engine / "MinkowskiConvolution.py").write_text("a = MinkowskiConvolutionFunction()\n" * 18)
    (root / "setup.py").write_text('run_command("pip", "uninstall", "MinkowskiEngine", "-y")\nkept = 1\n')
    (root / "src" / "3rdparty" / "concurrent_unordered_map.cuh").write_text(
        "return std::unique_ptr<Self, std::function<void(Self*)>>{\n"
    )
    return root


def contents(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): p.read_text() for p in sorted(root.rglob("*")) if p.is_file()}


def test_the_patch_makes_sources_that_current_python_compiles(tmp_path: Path) -> None:
    root = source_tree(tmp_path)
    assert len(minkowski_patch.patch(root)) == len(minkowski_patch.SUBSTITUTIONS)
    text = contents(root)
    assert text["setup.py"] == "kept = 1\n"
    assert text["src/3rdparty/concurrent_unordered_map.cuh"] == "return std::shared_ptr<Self>{\n"
    namespace: dict[str, object] = {}
    code = compile(text["MinkowskiEngine/MinkowskiKernelGenerator.py"], "x", "exec")
    assert {"namedtuple", "Sequence"} <= set(code.co_names) and not namespace
    assert "Function()" not in "".join(text.values())


def test_a_source_of_another_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    root = source_tree(tmp_path)
    (root / "setup.py").write_text("something = else_\n")
    before = contents(root)
    with pytest.raises(ValueError, match=r"setup.py has .* 0 times, not 1"):
        minkowski_patch.patch(root)
    assert contents(root) == before


def install(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )


def fake_python(folder: Path, torch: str) -> str:
    """An interpreter in whose environment torch is this source; everything else is this Python's."""
    stub = folder / "stub"
    stub.mkdir()
    (stub / "torch.py").write_text(torch)
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={stub} exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    return str(program)


CPU_TORCH = "__version__ = '2.13.0+cpu'\nclass version:\n    cuda = None\n"
CUDA_TORCH = "__version__ = '2.13.0'\nclass version:\n    cuda = '13.0'\n"


def test_the_install_script_names_its_choices(tmp_path: Path) -> None:
    done = install("--gpu")
    assert done.returncode == 2 and "choices: --cpu, --cuda, --force, --wheel-only" in done.stderr
    assert "TORCH_CUDA_ARCH_LIST" in install("--help").stdout


def test_the_install_script_says_what_is_missing(tmp_path: Path) -> None:
    assert "set PYTHON to the interpreter" in install(PYTHON=str(tmp_path / "nothing")).stderr
    done = install(PYTHON=fake_python(tmp_path, "raise ModuleNotFoundError('no torch')"))
    assert done.returncode == 1 and "torch is missing" in done.stderr


def test_a_broken_torch_or_no_pip_ends_the_install_script_before_it_builds(tmp_path: Path) -> None:
    python = fake_python(tmp_path, "raise OSError('libcudart.so: cannot open')")
    done = install("--wheel-only", PYTHON=python)
    assert done.returncode == 1 and "does not import" in done.stderr and "libcudart.so: cannot open" in done.stderr
    (tmp_path / "stub" / "torch.py").write_text(CPU_TORCH)
    (tmp_path / "stub" / "pip.py").write_text("raise SystemExit(1)")
    done = install("--wheel-only", PYTHON=python)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "pip is missing" in done.stderr


@pytest.mark.skipif(
    not Path(sysconfig.get_paths()["include"], "Python.h").is_file(), reason="needs the headers of this Python"
)
def test_a_relative_interpreter_is_found_from_every_folder_of_the_build(tmp_path: Path) -> None:
    python = Path(fake_python(tmp_path, CPU_TORCH))
    (tmp_path / "stub" / "pip.py").write_text(
        f"import pathlib, sys\nif 'download' in sys.argv: pathlib.Path({str(tmp_path / 'asked')!r}).touch()\n"
    )
    compiler = tmp_path / "cxx"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    done = subprocess.run(
        ["bash", str(SCRIPT), "--cpu", "--wheel-only"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHON": f"./{python.name}", "CXX": str(compiler), "MINKOWSKI_CACHE": str(tmp_path)},
        timeout=300,
    )
    assert "could not download" in done.stderr and (tmp_path / "asked").exists(), done.stderr


def test_cuda_needs_a_cuda_build_of_torch(tmp_path: Path) -> None:
    done = install("--cuda", PYTHON=fake_python(tmp_path, CPU_TORCH))
    assert done.returncode == 1 and "torch 2.13.0+cpu is a CPU build" in done.stderr


def test_cuda_needs_a_toolkit_of_torch_s_major_version(tmp_path: Path) -> None:
    python = fake_python(tmp_path, CUDA_TORCH)
    assert "has no bin/nvcc" in install("--cuda", PYTHON=python, CUDA_HOME=str(tmp_path)).stderr
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
    nvcc.chmod(0o755)
    done = install("--cuda", PYTHON=python, CUDA_HOME=str(tmp_path))
    assert done.returncode == 1 and "is CUDA 12.4 but torch 2.13.0 was built with 13.0" in done.stderr


def test_a_missing_blas_is_named_before_anything_is_downloaded(tmp_path: Path) -> None:
    compiler = tmp_path / "cxx"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    python = fake_python(tmp_path, CPU_TORCH)
    for name, message in ((str(compiler), "apt-get install libopenblas-dev"), ("no-such-compiler", "build-essential")):
        done = install("--cpu", "--wheel-only", PYTHON=python, CXX=name, MINKOWSKI_CACHE=str(tmp_path / "cache"))
        assert done.returncode == 1 and message in done.stderr


def test_shell_scripts_parse_and_can_be_run() -> None:
    for script in sorted(DOCKER.glob("*.sh")):
        assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    for name in ("install_minkowski.sh", "entrypoint.sh"):
        assert (DOCKER / name).stat().st_mode & stat.S_IXUSR, name


def test_the_entrypoint_runs_its_command_with_a_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = subprocess.run(
        [str(DOCKER / "entrypoint.sh"), "sh", "-c", 'test -d "$HOME" && echo "$1"', "x", "two words"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HOME": str(home)},
    )
    assert done.returncode == 0 and done.stdout == "two words\n" and home.is_dir()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to become somebody else")
def test_the_entrypoint_becomes_the_owner_of_the_working_folder(tmp_path: Path) -> None:
    top = Path(tempfile.gettempdir()).resolve()
    for folder in (tmp_path, *tmp_path.parents):
        if top in folder.resolve().parents:
            folder.chmod(0o755)
    try:
        os.chown(tmp_path, 4321, 4322)
        subprocess.run(["setpriv", "--reuid", "4321", "--regid", "4322", "--clear-groups", "true"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"nobody else to become here: {error}")
    done = subprocess.run(
        [str(DOCKER / "entrypoint.sh"), "sh", "-c", "id -u; id -g; touch made"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path / "home")},
    )
    assert done.stdout.split() == ["4321", "4322"], done.stderr
    assert ((tmp_path / "made").stat().st_uid, (tmp_path / "made").stat().st_gid) == (4321, 4322)


def test_compose_has_the_defaults_of_the_dockerfile() -> None:
    declared = dict(re.findall(r'^ARG (\w+)="?(.*?)"?$', DOCKERFILE, re.MULTILINE))
    given = {**COMPOSE["x-app"]["build"]["args"], **GPU["x-gpu"]["build"]["args"]}
    for name, value in given.items():
        assert re.fullmatch(r"\$\{\w+:-(.*)\}", value)[1] == declared[name], name
    assert COMPOSE["x-app"]["build"]["target"] == "cpu" and GPU["x-gpu"]["build"]["target"] == "cuda"
    assert {"cpu", "cuda"} <= set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))


def test_only_the_override_asks_for_a_gpu() -> None:
    assert "nvidia" not in (ROOT / "compose.yaml").read_text(encoding="utf-8").replace("NVIDIA", "")
    for service in ("train", "test", "shell"):
        device = GPU["services"][service]["deploy"]["resources"]["reservations"]["devices"][0]
        assert device["capabilities"] == ["gpu"]
    assert "deploy" not in GPU["services"]["tensorboard"]


def test_the_override_changes_the_image_of_every_service() -> None:
    assert GPU["services"].keys() == COMPOSE["services"].keys()
    for service in GPU["services"].values():
        assert service["image"] == "mink_decouple:cuda" and service["build"]["target"] == "cuda"


def test_compose_has_the_services_and_no_version_key() -> None:
    assert set(COMPOSE["services"]) == {"train", "test", "tensorboard", "shell"}
    assert "version" not in COMPOSE  # Compose 1.29 takes a file without one, Compose 2 warns of one
    for service in COMPOSE["services"].values():
        assert service["shm_size"] == "2gb" and service["entrypoint"][0] == "/app/docker/entrypoint.sh"


def test_the_requirements_of_an_image_are_those_of_the_package(tmp_path: Path) -> None:
    for name in ("requirements.py", "setup.cfg"):
        (tmp_path / name).write_text(((ROOT if name == "setup.cfg" else DOCKER) / name).read_text(encoding="utf-8"))
    run = [sys.executable, str(tmp_path / "requirements.py")]
    lines = subprocess.run([*run, "las,test,interpreter"], capture_output=True, text=True).stdout.splitlines()
    assert {"numpy>=1.26", "laspy[lazrs]>=2.5", "pytest>=8"} <= set(lines)
    markers = [str(Requirement(line).marker) for line in lines if ";" in line]
    assert markers == ['platform_system == "Linux" and platform_machine == "x86_64"']
    assert [line for line in lines if line.startswith("torch")] == [f"torch=={__import__('torch').__version__}"]
    wrong = subprocess.run([*run, "all"], capture_output=True, text=True)
    assert wrong.returncode == 1 and "choices: las" in wrong.stderr


def test_an_image_holds_what_is_named_and_never_the_clouds_beside_it() -> None:
    lines = [x for x in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if not x.startswith("#")]
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert lines[0] == "*" and lines[-1] == "**/__pycache__"
    assert all((ROOT / name).exists() for name in kept) and not kept & {".git", ".venv", "data", "runs"}
    assert {"configs", "docker", "docs", "mink_decouple", "setup.cfg", "tests", "tools"} <= kept
    # `docker compose run test` runs the tests inside: what they read of the project's folder has to be there
    read = {
        name
        for file in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r'ROOT / "([\w.]+)"', file.read_text(encoding="utf-8"))
    }
    assert {"README.md", ".github"} <= read and read <= kept
