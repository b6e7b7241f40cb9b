"""What a model is worth and what it costs: accuracy and perplexity, speed and memory, energy.

stages.py holds the two stages, each from a checkpoint to one JSON file.

    engines/         what runs a checkpoint, and its table
    accuracy.py      tasks.py has the tasks, fewshot.py their examples, answers.py what was answered, floors.py what is
                     had without knowledge; shared_prefix.py scores fast (prefix_tree.py), quiet.py hushes lm-eval
    texts.py         perplexity.py on the texts of a configuration; positions.py says how long an input may be
    workload.py      windows.py measures one window of it, figures.py sums them up
"""

from greenprune.benchmark.stages import accuracy_stage, energy_stage, was_disturbed

__all__ = ["accuracy_stage", "energy_stage", "was_disturbed"]
