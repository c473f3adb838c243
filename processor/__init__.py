"""Train, extract features, fuse, evaluate."""
