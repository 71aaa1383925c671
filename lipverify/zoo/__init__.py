"""The model zoo: small networks that ship with the package, each a folder with model.py, card and weights.

model.py of the zoo is our own code and runs without being asked for; a folder given by path from anywhere
else is somebody's code and is refused. Importing this package imports neither torch nor scikit-learn.
"""

from lipverify.zoo.building import build, retrain
from lipverify.zoo.card import Card, Claim, InputBox, Measured, Training
from lipverify.zoo.location import names, resolve, root
from lipverify.zoo.network import accuracy, card, example_input, load_module, points, test_data

__all__ = [
    "Card",
    "Claim",
    "InputBox",
    "Measured",
    "Training",
    "accuracy",
    "build",
    "card",
    "example_input",
    "load_module",
    "names",
    "points",
    "resolve",
    "retrain",
    "root",
    "test_data",
]
