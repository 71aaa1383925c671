"""Did quantising or pruning break anything? How far copies can be from the original on all inputs, and which labels are safe."""

import torch

import lipverify as lv
from lipverify import zoo

original = lv.load("zoo:digits-relu-mlp")
x, y = zoo.points("digits-relu-mlp", 100)
for name in ("digits-int8", "digits-pruned"):
    copy = lv.load(f"zoo:{name}")
    answer = lv.deviation(original, copy, lv.InputBox((64,), 0.0, 1.0), x=x.double())
    kept = answer.fields["kept"]
    print(
        f"{name}: no output moves by more than {answer.upper:.3f}, some input moves one by {answer.lower:.3f}"
    )
    print(
        f"  {kept['certified']:.1%} of {kept['points']} labels are certified to be kept, {len(kept['changed'])} change"
    )
    near = lv.deviation(original, copy, lv.Ball(x[:10].double(), 1 / 64, "linf", (0.0, 1.0)))
    print(f"  within 1/64 of ten images: at most {float(torch.as_tensor(near.upper).max()):.3f}")
