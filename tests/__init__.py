"""Tests of lipverify, with what they share."""

import os
import sys

# Containers often ask for no bytecode. Without any, every process that a test starts compiles the package again, half a second
# each, and every run the tests. `.gitignore` has the folders.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
