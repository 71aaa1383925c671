"""`make wheel-test`: what is installed from the wheel works outside the checkout.

A wheel is built and installed, without its dependencies, into a new virtual environment in a temporary folder. The dependencies
are those of the environment that runs this script: its site-packages are put behind the new ones by a `.pth` file. Python does
not follow the `.pth` files there, so that an editable install is not seen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMOKE = """
import importlib.metadata, lipverify, sys
from pathlib import Path
place = Path(lipverify.__file__).resolve()
assert place.is_relative_to(Path(sys.prefix).resolve()), place
assert importlib.metadata.version("lipverify") == lipverify.__version__
assert {e.name for e in importlib.metadata.entry_points(group="lipverify.analyzers")} >= {"product", "local", "lipsdp"}
missing = [name for name in lipverify.__all__ if not hasattr(lipverify, name)]
assert not missing, missing
print(place)
"""


def run(*command: str | Path, folder: Path) -> str:
    """Standard output of a command that must succeed, run with nothing of this environment but the path of programs."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**kept, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(
            f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def main() -> None:
    """Builds, installs, and uses it."""
    with tempfile.TemporaryDirectory(prefix="lipverify-wheel-") as name:
        folder = Path(name)
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
        run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, folder=folder)
        (wheel,) = folder.glob("lipverify-*.whl")
        venv.create(folder / "env", with_pip=False)
        python = folder / "env" / "bin" / "python"
        site = Path(
            run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder).strip()
        )
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        run(
            *pip,
            "--python",
            python,
            "install",
            "--quiet",
            "--no-deps",
            "--force-reinstall",
            wheel,
            folder=folder,
        )
        print(run(python, "-c", SMOKE, folder=folder).strip())
        program = folder / "env" / "bin" / "lipverify"
        assert "digits-cnn" in run(program, "zoo", "list", folder=folder)
        run(program, "doctor", folder=folder)
        audit = ("audit", "zoo:cancer-gelu", "--analyzers", "product", "--out", "report", "--json")
        document = json.loads(run(program, *audit, folder=folder))
        bound = document["results"][0]
        assert bound["rigour"] == "checked", bound
        assert bound["upper"] >= document["lower"]["value"] > 0
        assert (folder / "report" / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
        verify = ("verify", "report/certificates/product.json", "--model", "zoo:cancer-gelu", "--json")
        assert json.loads(run(program, *verify, folder=folder))["valid"] is True
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, installed and used outside the checkout")


if __name__ == "__main__":
    main()
