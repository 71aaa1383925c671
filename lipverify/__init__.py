"""Certified Lipschitz bounds for trained networks."""

__version__ = "0.1.0"
