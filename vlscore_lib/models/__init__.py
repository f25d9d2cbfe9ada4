"""Models: two encoders with one embedding space, a family a file; `registry` knows them all by name."""
