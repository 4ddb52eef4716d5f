"""Model files: checkpoints to read, the merged one to write, and what stands beside the weights.

Nothing here knows of merge methods, and nothing but `torch_bin` imports torch.
"""
