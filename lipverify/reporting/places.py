"""Where an audit's files lie in its folder. No name from a model file takes part."""

from __future__ import annotations

import re

RESULT, REPORT, WITNESS, CERTIFICATES = "result.json", "report.html", "witness.npz", "certificates"
ADVERSARIAL = "adversarial.npz"
CERTIFICATE = re.compile(r"certificates/[a-z0-9]+(-[a-z0-9]+)*\.(json|safetensors)")
"""The only form of a certificate's place, and of its arrays beside it: made from an analyzer's name, never from a file."""
