"""Ray's door: join.py joins or starts it, capacity.py says what it can be, resources.py what a stage asks of it."""
