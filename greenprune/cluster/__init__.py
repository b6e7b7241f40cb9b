"""Ray's door: join.py joins or starts it, resources.py says what its nodes hold, workers.py starts worker groups."""
