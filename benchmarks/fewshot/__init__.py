"""What `benchmarks/few_shot.py` is made of: studies, trials with a budget, intervals, reports."""
