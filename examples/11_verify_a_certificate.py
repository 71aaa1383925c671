"""A certificate is proved again by an independent checker that knows nothing of the analyzers, and refused when it lies."""

import json
import tempfile
from pathlib import Path

import lipverify as lv

result = lv.audit(lv.load("zoo:wine-selu"), analyzers=["product"], budget=2)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "product.json"
    result.certificates["product"].save(path)
    lv.verify(path, "zoo:wine-selu")
    print(f"valid: L <= {result.best.upper:.4f}, {result.certificates['product'].rigour}")

    # A smaller bound than the evidence carries, written consistently everywhere.
    text = path.read_text(encoding="utf-8")
    claim = json.loads(text)["claim"]
    smaller = {"upper": 10.0, "upper_hex": (10.0).hex(), "upper_decimal": "10"}
    lie = json.loads(text) | {"claim": claim | smaller}
    lie["claim"]["statement"] = claim["statement"].replace(claim["upper_decimal"], "10")
    path.write_text(json.dumps(lie), encoding="utf-8")
    try:
        lv.verify(path, "zoo:wine-selu")
    except lv.LipverifyError as error:
        print(f"{type(error).__name__}: {error}")
