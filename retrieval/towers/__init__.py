"""Dual towers: the encoders, their contrastive training, and the folder a trained retriever is kept in."""
