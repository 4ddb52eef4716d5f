"""The engine: runs a plan in bounded memory, on the CPU or on GPUs."""
