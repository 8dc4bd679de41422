"""Tasks of the serving tier: registry, heads, prompts."""
