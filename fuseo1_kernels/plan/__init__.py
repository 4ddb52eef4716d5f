"""The plan: what is merged into which output tensor, known before any weight is read."""
