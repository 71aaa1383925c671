"""Randomised smoothing: radii of the average of a classifier over Gaussian noise, with a stated confidence."""
