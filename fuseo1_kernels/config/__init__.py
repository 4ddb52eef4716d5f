"""The config: a YAML file in mergekit's vocabulary, parsed, validated and resolved."""
