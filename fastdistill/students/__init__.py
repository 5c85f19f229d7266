"""Student networks: architectures, initial weights and the batched ensemble."""
