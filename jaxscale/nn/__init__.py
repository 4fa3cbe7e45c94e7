"""Flax NNX layers and the one Transformer made of them; plain parameter trees at the edge (`functional`)."""
