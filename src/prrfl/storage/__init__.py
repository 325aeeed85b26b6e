"""Files: whole or absent, tensors and states, reading what people left, records."""
