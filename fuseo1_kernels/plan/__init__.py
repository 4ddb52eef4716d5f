"""The plan: every output tensor with its inputs and its rule, made before any weight is read."""
