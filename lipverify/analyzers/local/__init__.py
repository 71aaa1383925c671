"""Local Lipschitz bounds: the norms of all (Clarke) Jacobians over a ball, by linear bounds of the backward pass."""
