"""Scaling studies of retrievers: a family of towers trained in several sizes on several amounts of data."""
