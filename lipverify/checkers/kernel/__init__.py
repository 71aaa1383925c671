"""The kernel: theorems about programs, and proofs made of them. It reads no file and searches for nothing."""
