"""Compiles the hot path with mypyc into build/compiled (docs/adr/0004): the same sources, less processor time.

    python tools/compile.py

Where there is no C compiler it says so and exits 0, because the product runs without; what does not compile exits 1.
Nothing is written beside the sources. `turnout.compiled` uses the result as long as no source has changed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))
os.environ["TURNOUT_PURE"] = "1"

from turnout.compiled import FOLDER, MANIFEST, digest  # noqa: E402 - the path must be set first

# Only Python's own entry point of the library is looked up by name: calls between our functions need no table then and
# may be inlined (6 % of the processor time of a small request). The linkers of other systems know other options.
_LINUX_FLAGS = {
    "CFLAGS": "-fvisibility=hidden -fno-semantic-interposition -fno-plt",
    "LDFLAGS": "-Wl,-Bsymbolic -Wl,-z,now",
}
_SETUP = """
from mypyc.build import mypycify
from setuptools import setup
import sys
files = sys.argv.pop().split(",")
setup(name="turnout-compiled", packages=[], ext_modules=mypycify(files, opt_level="2", debug_level="0"))
"""


def modules() -> list[str]:
    """Return the names of the modules to compile, as pyproject.toml lists them."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        names: list[str] = tomllib.load(file)["tool"]["turnout"]["compiled"]
    return names


def manifest(names: list[str]) -> dict[str, str]:
    """Return the digest of each module's source."""
    return {name: digest(_source(name)) for name in names}


def main() -> int:
    """Compile unless what is there is current."""
    made_of = manifest(modules())
    kept = FOLDER / MANIFEST
    if kept.is_file() and json.loads(kept.read_bytes()) == made_of:
        return 0
    why_not = _missing()
    if why_not:
        print(f"the hot path stays interpreted: {why_not}", file=sys.stderr)
        return 0
    print("compiling the hot path (a minute, once per change) …", file=sys.stderr)
    began = time.monotonic()
    error = _compile(made_of)
    if error:
        print(f"error: the hot path does not compile\n{error}", file=sys.stderr)
        return 1
    print(f"compiled {len(made_of)} modules in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


def _compile(made_of: dict[str, str]) -> str:
    """Build in a temporary folder and put the result in place at once; return the errors, "" without any."""
    with tempfile.TemporaryDirectory(prefix="turnout-compile-") as scratch:
        work = Path(scratch)
        shutil.copytree(ROOT / "src" / "turnout", work / "turnout", ignore=shutil.ignore_patterns("__pycache__"))
        (work / "setup.py").write_text(_SETUP)
        files = ",".join(str(_source(name).relative_to(ROOT / "src")) for name in made_of)
        built = subprocess.run(
            [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", "out", "--build-temp", "tmp", files],
            cwd=work,
            env={**os.environ, **_flags(), "MYPYPATH": str(work)},
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode != 0:
            return "\n".join((built.stdout + built.stderr).splitlines()[-25:])
        (work / "out" / MANIFEST).write_text(json.dumps(made_of, indent=0))
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(work / "out", FOLDER)
    return ""


def _flags() -> dict[str, str]:
    """Return our compiler's options followed by those of the environment, which win."""
    if sys.platform != "linux":
        return {}
    return {name: f"{flags} {os.environ.get(name, '')}".strip() for name, flags in _LINUX_FLAGS.items()}


def _missing() -> str:
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(os.environ.get("CC", compiler).split()[0]) is None:
        return f"there is no C compiler ({compiler})"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "the headers of Python are not installed"
    return ""


def _source(name: str) -> Path:
    return ROOT / "src" / (name.replace(".", "/") + ".py")


if __name__ == "__main__":
    sys.exit(main())
