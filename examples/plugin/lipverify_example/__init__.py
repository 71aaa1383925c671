"""A plug-in: the operator asinh and the analyzer `frobenius`."""
