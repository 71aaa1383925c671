"""LipSDP: the tightest global bound from slope information, at its optimum without a cone solver."""
