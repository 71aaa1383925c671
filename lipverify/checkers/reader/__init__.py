"""The reader: bytes of strangers into programs. It knows nothing of proofs."""
