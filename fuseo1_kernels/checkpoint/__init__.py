"""Model files: reads checkpoints, writes the merged one and the small files beside its weights.

Nothing here depends on merge methods, or imports torch.
"""
