"""Cross-encoders: one encoder reads a query and a document together and says how well they fit."""
