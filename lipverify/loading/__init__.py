"""Everything that touches bytes of strangers, before any graph exists.

Policy. A file is opened only when it is a regular file of bounded size, read once, hashed, and recognised by
its bytes, not by its name. ONNX, safetensors and numpy archives are parsed by strict readers in which every
byte has one meaning. A pickled state dict is read by torch with `weights_only=True` in a child process with
resource limits, and only raw numbers come back; what that refuses is refused, never tried in a less safe mode.
Formats that run code on load are not read at all. The architecture of bare weights comes from a Python file of
the user, run only when the user says so. Names from a file reach people through `display`.

The resource limits bound accidents; they are not a sandbox.

Every problem is a `lipverify.errors` exception with one sentence: InvalidFile (exit 2) for damage,
UnsupportedModel (exit 5) for what no rule covers, UnsafeInput (exit 6) for what would run code or reach outside
the model's folder. Neither torch nor onnx is imported before a file needs it.
"""

from lipverify.loading.architecture import TrustedModule, load_weights
from lipverify.loading.arguments import parse_box, parse_duration, parse_margin, parse_radius
from lipverify.loading.data import Points, read_points
from lipverify.loading.enforced import Enforced, Roles, read_enforced, roles
from lipverify.loading.files import FileBytes, read_regular
from lipverify.loading.formats import WEIGHTS, Format, detect
from lipverify.loading.names import display, display_path, sentence
from lipverify.loading.numpy_archive import read_npz
from lipverify.loading.onnx_file import OnnxFile, read_onnx
from lipverify.loading.safetensors import parse_safetensors, read_safetensors, write_safetensors
from lipverify.loading.state_dict import StateDict, read_state_dict

__all__ = [
    "WEIGHTS",
    "Enforced",
    "FileBytes",
    "Format",
    "OnnxFile",
    "Points",
    "Roles",
    "StateDict",
    "TrustedModule",
    "detect",
    "display",
    "display_path",
    "load_weights",
    "parse_box",
    "parse_duration",
    "parse_margin",
    "parse_radius",
    "parse_safetensors",
    "read_enforced",
    "read_npz",
    "read_onnx",
    "read_points",
    "read_regular",
    "read_safetensors",
    "read_state_dict",
    "roles",
    "sentence",
    "write_safetensors",
]
