"""What a stage takes of memory.

prediction.py    from shapes, before any weight is read
peak.py          as measured, and whether a failure was for want of it
halving.py       a stage's work, and again with half the batch where memory ends
"""
