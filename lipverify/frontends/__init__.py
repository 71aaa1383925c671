"""From a network in somebody's format to our graph: `onnx` and `torch_export`, both through one `builder`."""
