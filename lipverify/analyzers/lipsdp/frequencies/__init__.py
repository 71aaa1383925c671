"""LipSDP of convolutional networks over frequencies: one multiplier a channel, small matrices at every frequency."""
