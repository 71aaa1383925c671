"""A step of a pipeline that fails when no bound below the limit is proved: exit code 3 of `--fail-above`."""

import subprocess
import sys
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    report = Path(folder) / "lipverify.xml"
    for model, limit in (("zoo:digits-maxmin-orthogonal", "10"), ("zoo:digits-cnn", "10")):
        command = [sys.executable, "-m", "lipverify", "audit", model, "--fail-above", limit, "--budget", "5s"]
        done = subprocess.run(
            [*command, "--junit", str(report)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        last = done.stderr.strip().splitlines()[-1]
        print(f"{model}: exit {done.returncode}" + (f", {last}" if done.returncode else ""))
    print(report.read_text(encoding="utf-8"))
