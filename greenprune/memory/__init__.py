"""What a stage takes of memory.

prediction.py    from shapes, before any weight is read
halving.py       a stage's work, and again with half the batch where memory ends

models/peak.py measures what it took.
"""
