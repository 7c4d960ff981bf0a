"""What a run will need before anything is loaded: parameters, memory, time, cost. Formulas: docs/planning.md.

shapes    what a model is, from its Hugging Face config alone
work      the tokens that each stage puts through each model
flops     arithmetic of one step
memory    bytes per GPU, by phase of a step
timing    seconds of one step on a device
plan      all of it for a composed config, with advice; table and JSON
"""
