"""nvcc of the pinned toolkit, nvdisasm, and cubins of single source files."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "target/model"
# The oldest release that pip has; it reads cubins of nvcc 13.0.
NVDISASM = "nvidia-cuda-nvdisasm==13.2.51"


def nvcc() -> Path:
    if path := os.environ.get("NVCC"):
        return Path(path)
    done = subprocess.run([ROOT / "scripts/cuda-toolkit"], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def nvdisasm() -> Path:
    """Installs it into target/nvdisasm where it is not there yet."""
    venv = ROOT / "target/nvdisasm"

    def found() -> list[Path]:
        return list(venv.glob("lib/python3*/site-packages/nvidia/cu13/bin/nvdisasm"))

    if path := os.environ.get("NVDISASM"):
        return Path(path)
    if not found():
        subprocess.run(["python3", "-m", "venv", venv], check=True)
        pip = [venv / "bin/pip", "install", "--quiet", "--disable-pip-version-check", NVDISASM]
        subprocess.run(pip, check=True)
    return found()[0]


def compile_cubin(source: Path, arch: str, to: Path, flags: tuple[str, ...]) -> Path:
    """A source file for sm_`arch`. A cubin that is newer than all of csrc stays."""
    code = f"-gencode=arch=compute_{virtual(arch)},code=sm_{arch}"
    to.parent.mkdir(parents=True, exist_ok=True)
    command = [nvcc(), "-cubin", "-std=c++17", "-O3", "-lineinfo", "-t1", code, *flags, source, "-o", to]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"nvcc does not compile {source} for sm_{arch}:\n{done.stderr.strip()}")
    return to


def virtual(arch: str) -> str:
    """Of the PTX: Blackwell runs what its driver makes of compute_90, the newest PTX of the build."""
    return "90" if arch == "100" else arch


def our_cubin(source: str, arch: str) -> Path:
    """Of csrc/`source`.cu."""
    path = ROOT / "csrc" / f"{source}.cu"
    if not path.is_file():
        raise SystemExit(f"csrc/{source}.cu is not a file: see kernels.py")
    cubin = TARGET / f"{path.stem}.sm_{arch}.cubin"
    newest = max(x.stat().st_mtime for x in (ROOT / "csrc").rglob("*") if x.is_file())
    if cubin.is_file() and cubin.stat().st_mtime > newest:
        return cubin
    return compile_cubin(path, arch, cubin, ("-I", str(ROOT / "csrc")))
