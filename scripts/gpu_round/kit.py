"""Makes the kit: programs that need no cargo where they run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from . import arch

MOST_BYTES = 64 << 20
# Tests of the library, and programs of the emulator's crate with the source of each one's image.
TESTS = ("cuda_attention", "cuda_writes", "cuda_device")
IMAGES = {"arch": "arch_micro.cu", "arch_hopper": "arch_hopper.cu", "rates": "rates.cu",
          "rates_hopper": "rates_hopper.cu"}
# The last one is of the program before it as well.
PROGRAMS = [name for name in IMAGES if name != "rates_hopper"]


def say(text):
    print(text, flush=True)


def find_nvcc(root):
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    candidates = [os.environ.get("NVCC"), *(f"{home}/bin/nvcc" for home in homes if home),
                  shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    for candidate in candidates:
        if candidate and Path(candidate).exists():
            return candidate
    made = subprocess.run([root / "scripts/cuda-toolkit"], check=True, capture_output=True, text=True)
    return made.stdout.strip()


def archs_here():
    """That of the GPU in this machine, or Hopper's: every program has all images in it, once for each."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.split()[0]
    except (OSError, IndexError, subprocess.SubprocessError):
        found = "9.0"
    return found.replace(".", "")


def cargo(root, *args):
    """Runs cargo and returns the files it made, by the name of their target."""
    command = ["cargo", *args, "--message-format=json-render-diagnostics"]
    ran = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True)
    if ran.returncode:
        sys.exit(f"failed: {' '.join(command)}")
    made = {}
    for line in ran.stdout.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact":
            files = [message["executable"]] if message.get("executable") else message["filenames"]
            # A library is made as several kinds of file.
            files = [file for file in files if file.endswith(".so")] or files
            name, kind = message["target"]["name"], message["target"]["kind"][0]
            # A program's own unit tests have its name.
            if kind != "bin" or not message["profile"]["test"]:
                made[name, kind] = files[0]
        if message.get("reason") == "build-script-executed" and "simt" in message["package_id"]:
            env = dict(message["env"])
            made["emulators"] = {mode: env.get(f"SIMT_{mode.upper()}") for mode in ("fast", "checking", "ptx")}
    return made


def programs(root, dev, emulated):
    if emulated:
        # As CI builds all of it anyway.
        return cargo(root, "build", "--workspace", "--all-targets", "--locked")
    release = [] if dev else ["--release"]
    # Tests keep their debug assertions; what is timed does not.
    tests = [flag for name in TESTS for flag in ("--test", name)]
    # One profile, so that nvcc compiles once for both; that of benches differs in nothing.
    bench = ["--profile", "dev" if dev else "release"]
    made = cargo(root, "test", "-p", "inflight", "--features", "cuda", "--no-run", *tests)
    made |= cargo(root, "test", "-p", "simt", "--no-run", *(flag for name in PROGRAMS for flag in ("--test", name)))
    made |= cargo(root, "bench", "-p", "inflight", "--features", "cuda", "--no-run", "--bench", "gpu", *bench)
    features = "inflight-cli/cuda,inflight-loader/cuda"
    made |= cargo(root, "build", "-p", "inflight-cli", "-p", "inflight-loader", "--features", features, *release)
    return made


def build(root, kit, dev, emulated):
    """`emulated`: without nvcc, for a rehearsal and nothing else."""
    shutil.rmtree(kit, ignore_errors=True)
    kit.mkdir(parents=True)
    archs, compiler = [], "g++"
    if not emulated:
        os.environ["NVCC"] = nvcc = find_nvcc(root)
        archs = re.split(r"[;, ]+", os.environ.setdefault("INFLIGHT_CUDA_ARCHS", archs_here()).strip())
        version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        compiler = version.strip().splitlines()[-1]
    made = programs(root, dev, emulated)
    kept = {("gpu", "bench"): "gpu", ("inflight", "bin"): "inflight"}
    kept |= {("inflight_loader", "cdylib"): "libinflight_loader.so"}
    kept |= {(name, "test"): name for name in (*TESTS, *PROGRAMS)}
    for key, name in kept.items():
        if emulated:
            (kit / name).symlink_to(made[key])
            continue
        shutil.copy(made[key], kit / name)
        subprocess.run(["strip", kit / name], check=True)
    if not emulated:
        images(root, kit, nvcc, [arch_ for arch_ in archs if arch_])
    for name in arch.PROGRAMS:
        command, env = arch.recording(kit, name, kit / "arch-emulator.txt")
        subprocess.run(command, cwd=root, env=os.environ | env, check=True, capture_output=True)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    about = {"commit": commit.stdout.strip(), "archs": archs, "compiler": compiler, "dev": dev or emulated,
             "emulators": {mode: path for mode, path in made.get("emulators", {}).items() if path}}
    (kit / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    size = sum(path.lstat().st_size for path in kit.iterdir())
    for path in sorted(kit.iterdir()):
        say(f"{path.lstat().st_size / 2**20:8.1f} MiB  {path.name}")
    say(f"{size / 2**20:8.1f} MiB in all")
    if size > MOST_BYTES:
        sys.exit(f"{kit} is larger than {MOST_BYTES >> 20} MiB")


def images(root, kit, nvcc, archs):
    """What nvcc makes of the emulator's kernels, where a GPU runs them."""
    common = ["-fatbin", "-std=c++17", "-O3", "-I", "csrc", "-I", "tests/simt/kernels"]
    for name, source in IMAGES.items():
        # wgmma is for 9.0 and nothing else: others get kernels that do nothing, and tests that say so.
        of = ["90a", *(arch_ for arch_ in archs if arch_ != "90")] if name.endswith("hopper") else archs
        gencode = [f"-gencode=arch=compute_{arch_},code=sm_{arch_}" for arch_ in of]
        command = [nvcc, *common, *gencode, f"tests/simt/kernels/{source}", "-o", kit / f"{name}.fatbin"]
        subprocess.run([str(part) for part in command], cwd=root, check=True)
