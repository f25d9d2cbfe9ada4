"""Evaluation: what is measured and how, baselines, the folder of a run, summaries and tables."""
