"""Two networks of the model zoo that classify equally well, one of them built to have Lipschitz constant 1."""

import lipverify as lv
from lipverify import zoo

for name in ("digits-relu-mlp", "digits-maxmin-orthogonal"):
    result = lv.audit(lv.load(f"zoo:{name}"), analyzers=["product"], budget=3)
    card = zoo.card(name)
    print(
        f"{name}: accuracy {card.measured.test_accuracy:.3f}, "
        f"{result.lower.value!r} <= L <= {result.best.upper!r}"
    )
