"""nvcc and nvdisasm, pinned, and what they make: cubins and their code, kept in target/kernel-model."""

import hashlib
import os
import pickle
import shutil
import subprocess
from pathlib import Path

from . import sass

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "target/kernel-model"
# It reads what nvcc 13.0 makes; pip has none of 13.0 itself.
NVDISASM = "nvidia-cuda-nvdisasm==13.2.51"
FLAGS = ["-std=c++17", "-O3", "-lineinfo"]


def nvcc() -> Path:
    """That of NVCC, else scripts/cuda-toolkit's, which is the pinned one."""
    if given := os.environ.get("NVCC"):
        return Path(given)
    made = subprocess.run([ROOT / "scripts/cuda-toolkit"], check=True, capture_output=True, text=True)
    return Path(made.stdout.strip())


def version(program: Path) -> str:
    """`13.0.88`: a record is of one version, and says which."""
    said = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
    return next(word.removeprefix("V") for word in said.split() if word.startswith("V") and word[1:2].isdigit())


def nvdisasm() -> Path:
    if given := os.environ.get("NVDISASM"):
        return Path(given)
    folder = ROOT / "target/nvdisasm"
    found = list(folder.glob("lib/python3*/site-packages/nvidia/cu13/bin/nvdisasm"))
    if not found:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["python3", "-m", "venv", folder], check=True)
        install = [folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", NVDISASM]
        subprocess.run(install, check=True)
        found = list(folder.glob("lib/python3*/site-packages/nvidia/cu13/bin/nvdisasm"))
    return found[0]


def sources_hash(folder: Path) -> str:
    names = sorted(p for p in folder.rglob("*") if p.suffix in (".cu", ".cuh", ".def", ".h"))
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in names)).hexdigest()


def functions(source: Path, code: str, ptx: str, include: Path) -> dict[str, sass.Function]:
    """The kernels of one source, compiled for sm_`code` by way of PTX of `ptx`."""
    compiler = nvcc()
    reader = Path(sass.__file__).read_text(encoding="utf-8")
    key = "\n".join([sources_hash(include), str(source.name), code, ptx, version(compiler), NVDISASM, *FLAGS, reader])
    kept = KEPT / f"{source.stem}.{code}.{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not kept.with_suffix(kept.suffix + ".pickle").exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        cubin = kept.with_suffix(kept.suffix + ".cubin")
        command = [compiler, "-cubin", *FLAGS, "-I", include, f"-gencode=arch=compute_{ptx},code=sm_{code}", source,
                   "-o", cubin]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            raise ValueError(f"{source}: nvcc says {ran.stderr.strip()}")
        found = sass.read(cubin, nvdisasm())
        cubin.unlink()
        kept.with_suffix(kept.suffix + ".pickle").write_bytes(pickle.dumps(found))
        return found
    return pickle.loads(kept.with_suffix(kept.suffix + ".pickle").read_bytes())
