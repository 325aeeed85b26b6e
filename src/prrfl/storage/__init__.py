"""Files: atomic writes, tensors and states, checked reading, and records of a run."""
