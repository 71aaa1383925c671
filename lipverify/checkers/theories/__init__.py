"""Theories: steps and facts that the core of the checker does not know, each in a module of its own (`kernel.theories`)."""
