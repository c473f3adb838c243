"""Long trials, which `make soak` runs whole and `make test` in a short form: kills at random moments, and mutated files."""
