"""Networks that nobody in this project made: all readable files are read, all others refused as stated."""

from pathlib import Path

import pytest

from lipverify.errors import UnsafeInput, UnsupportedModel
from lipverify.loading import read_npz, read_onnx, read_safetensors, read_state_dict

FOLDER = Path(__file__).parents[4] / "shared" / "checkpoints"

pytestmark = [
    pytest.mark.third_party,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="the sibling folder shared/checkpoints is absent"),
]


def files(*endings: str) -> list[Path]:
    return sorted(path for path in FOLDER.glob("*/*") if path.suffix in endings)


@pytest.mark.parametrize("path", files(".onnx"), ids=lambda path: path.stem)
def test_onnx(path: Path) -> None:
    file = read_onnx(path)
    assert len(file.model.graph.node) > 0
    assert file.external_files == ()


@pytest.mark.parametrize(
    ("name", "unwrapped", "count", "some"),
    [
        ("cifar-resnet20/resnet20-12fca82f.th", ("state_dict", "module."), 97, "layer3.2.bn2.running_var"),
        ("cifar-resnet2b/resnet2b.pth", ("state_dict",), 16, "layer1.0.conv1.weight"),
        ("kw-mnist-cnn/mnist.pth", (), 8, "0.weight"),
        ("mnist-fc3-pth/mnist_fc_3layer.pth", (), 6, "fc1.weight"),
        ("mnist-lenet-ckpt/ckpt_99.ckpt", ("net",), 10, "conv1.weight"),
        ("mnist-nor-mlp/spectral_NOR_MLP_B.pth", (), 6, "1.weight"),
        ("modadd-transformer/model_l8k1hzciux.pt", (), 12, "embed.W_E"),
        ("titanic-sigmoid/titanic_model.pt", (), 6, "linear1.weight"),
        ("eclipse-npz/lyr2n80test1.npz", (), 2, "w1"),
    ],
)
def test_state_dicts(name: str, unwrapped: tuple[str, ...], count: int, some: str) -> None:
    found = read_state_dict(FOLDER / name)
    assert found.unwrapped == unwrapped
    assert len(found.tensors) == count
    assert some in found.tensors


def test_pickle_of_more_than_tensors() -> None:
    with pytest.raises(UnsafeInput, match=r"numpy\.core\.multiarray\._reconstruct"):
        read_state_dict(FOLDER / "ppo-cartpole-pickle" / "ppo_model_cartpole_stab.pt")


def test_other_formats() -> None:
    assert len(read_safetensors(FOLDER / "silero-vad" / "silero_vad_16k.safetensors")) == 15
    assert read_npz(FOLDER / "inputs" / "mnist.npz")["images"].shape == (200, 1, 28, 28)
    for path in files(".mat"):
        with pytest.raises(UnsupportedModel, match="is a MATLAB file"):
            read_state_dict(path)
