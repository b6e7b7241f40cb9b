"""Tasks that lm-eval has none of: a YAML each, with their data on the hub, and the functions those name."""
