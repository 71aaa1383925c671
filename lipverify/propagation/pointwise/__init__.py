"""What one operator does to values at points and to changes between them, in fixed point (`propagation/points.py` walks)."""
