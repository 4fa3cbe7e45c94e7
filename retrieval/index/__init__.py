"""Indexes: built by faiss, kept by the durable layer, each with its measured recall."""
