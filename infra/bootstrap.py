"""Set this machine up: system packages, virtual environment, pinned Python packages.

Runs on a bare Python 3.11 (standard library only). Does nothing where nothing is missing; safe to
interrupt and run again. Called by ``make setup``.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "nightbeam-setup.sha256"
TORCH = "torch==2.13.0"  # first and alone: any later release would bring gigabytes of CUDA


def main() -> int:
    """Return 0 when everything is in place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="say what is missing, change nothing")
    check = parser.parse_args().check
    if sys.version_info[:2] != (3, 11):
        return _refuse(f"Python 3.11 is needed, this is {sys.version.split()[0]}", "make setup PYTHON=python3.11")
    missing = missing_packages()
    if check:
        print("missing system packages:", " ".join(missing) or "none")
        return 1 if missing else 0
    if missing and not install_packages(missing):
        return 69
    set_up_environment()
    return 0


def missing_packages() -> list[str]:
    """Return the Debian packages whose proof is not on this machine."""
    missing = []
    for line in (ROOT / "infra" / "debian-packages.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            package, proof = line.split()
            if not (shutil.which(proof) or glob.glob(proof)):
                missing.append(package)
    # Debian splits these off its own Python; any other Python brings them along.
    if importlib.util.find_spec("ensurepip") is None:
        missing.append("python3.11-venv")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        missing.append("python3.11-dev")
    return missing


def install_packages(packages: list[str]) -> bool:
    """Install with apt-get as root or through sudo that asks nothing; else say what to type."""
    command = [
        "apt-get",
        "install",
        "--yes",
        "--option",
        "DPkg::Lock::Timeout=300",
        "--no-install-recommends",
        *packages,
    ]
    prefix = _as_root()
    if prefix is None or not shutil.which("apt-get"):
        _refuse(f"these system packages are missing: {' '.join(packages)}", f"sudo {' '.join(command)}")
        return False
    print("installing system packages:", " ".join(packages), flush=True)
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["apt-get", "update", "--quiet"], command):
        done = subprocess.run([*prefix, *step], env=environ, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(done.stdout[-2000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
            _refuse(f"`{' '.join(step)}` failed", f"sudo {' '.join(command)}")
            return False
    return True


def set_up_environment() -> None:
    """Bring .venv to what constraints.txt and pyproject.toml say, unless it is there already."""
    wanted = _fingerprint()
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    python = VENV / "bin" / "python"
    if not python.exists():
        print("making .venv", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pinned = ["--constraint", str(ROOT / "constraints.txt")]
    environ = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    print("installing Python packages (minutes, the first time)", flush=True)
    for what in (["pip"], [TORCH], ["--editable", f"{ROOT}[browse,dev,docs,facility,postgresql,redis]"]):
        subprocess.run([*pip, *pinned, *what], check=True, env=environ)
    STAMP.write_text(wanted)


def _fingerprint() -> str:
    digest = hashlib.sha256(str(ROOT).encode())
    for name in ("constraints.txt", "pyproject.toml", "infra/bootstrap.py"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def _as_root() -> list[str] | None:
    if os.geteuid() == 0:
        return []
    if not shutil.which("sudo"):
        return None
    silent = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
    return ["sudo", "-n"] if silent else None


def _refuse(what: str, fix: str) -> int:
    print(f"setup: {what}\n  fix: {fix}", file=sys.stderr)
    return 69


if __name__ == "__main__":
    sys.exit(main())
