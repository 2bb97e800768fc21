"""Tools that look at a model: record it, draw it, verify it, print it, export it."""
