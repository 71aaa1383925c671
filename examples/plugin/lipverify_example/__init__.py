"""A plug-in: the operator compressed and the analyzer `frobenius`."""
